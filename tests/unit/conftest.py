"""How hard Hypothesis tries: by default seconds; ``--hypothesis-profile thorough`` for minutes of arbitrary events."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("thorough", max_examples=2000, stateful_step_count=150, deadline=None)

"""How hard Hypothesis tries: by default seconds; ``--hypothesis-profile thorough`` for minutes of arbitrary events."""

from __future__ import annotations

from hypothesis import settings

# No example has a time limit: on a machine under other load, Hypothesis' own of 0.2 s fails tests that are right.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
settings.register_profile("thorough", max_examples=2000, stateful_step_count=150, deadline=None)

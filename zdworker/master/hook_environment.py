"""What hooks in the master have changed in the environment.

Rules: a generation starts from the environment of the master's beginning, with its own configuration's changes; what
hooks have set in the master has to be told to it. What a configuration sets is no hook's doing, so the moments before
and after one is evaluated are told here.
"""

from __future__ import annotations

import os


class Environment:
    """The changes since this was made."""

    def __init__(self) -> None:
        self._known = dict(os.environ)
        self._hooked: dict[str, str | None] = {}

    def note(self) -> None:
        """Take what has changed since the last look for the doing of hooks."""
        for name in self._known.keys() | os.environ.keys():
            if self._known.get(name) != os.environ.get(name):
                self._hooked[name] = os.environ.get(name)
        self.pass_over()

    def pass_over(self) -> None:
        """Take what has changed since the last look for a configuration's doing."""
        self._known = dict(os.environ)

    def changes(self) -> dict[str, str | None]:
        """Return what hooks have set, None for what they have taken away."""
        self.note()
        # What a newer configuration has set differently since is that configuration's, in the generation too.
        return {name: value for name, value in self._hooked.items() if os.environ.get(name) == value}

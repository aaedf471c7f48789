"""What hooks in the master have set: environment variables, and attributes of ``server``.

Rules: a generation starts from the environment that the master was started with, and its own configuration's changes.
What hooks have set in the master has to be sent to its workers. What a configuration sets was not set by a hook, so the
moments before and after one is taken over are marked here, and nothing is seen of one that is being evaluated.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gunicorn.arbiter import Arbiter

OWN_ATTRIBUTES = frozenset({"pid", "pidfile", "LISTENERS", "systemd", "dirty_pidfile"})
"""Attributes that Gunicorn sets on its arbiter after this object is made."""


class HookEnvironment:
    """The changes since this was made.

    :param server: Gunicorn's arbiter, on which hooks set attributes.
    :param environment: returns the environment without the changes of a configuration that is being evaluated.
    """

    def __init__(self, server: Any, environment: Callable[[], dict[str, str]]) -> None:
        self._server = server
        self._environment = environment
        self._own_attributes = {*vars(server), *OWN_ATTRIBUTES}
        self._known = environment()
        self._hooked: dict[str, str | None] = {}

    def note(self) -> None:
        """Take what has changed since the last call (of this or ``pass_over``) for the work of hooks."""
        before, self._known = self._known, self._environment()
        for name in before.keys() | self._known.keys():
            if before.get(name) != self._known.get(name):
                self._hooked[name] = self._known.get(name)

    def pass_over(self) -> None:
        """Take what has changed since the last call (of this or ``note``) for the work of a configuration."""
        self._known = self._environment()

    def changes(self) -> dict[str, str | None]:
        """Return the variables that hooks have set, and None for those that they have removed."""
        self.note()
        # What a newer configuration has set differently since is that configuration's, in the generation too.
        return {name: value for name, value in self._hooked.items() if self._known.get(name) == value}

    def adopt(self, changes: dict[str, str | None], server_attributes: dict[str, Any]) -> None:
        """Set what hooks have set in an earlier program of this process (an upgrade)."""
        for name, value in changes.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._hooked = dict(changes)
        self.pass_over()
        for name, value in server_attributes.items():
            setattr(self._server, name, value)

    def server_attributes(self) -> dict[str, Any]:
        """Return the attributes that hooks have set on ``server``."""
        return {
            name: value
            for name, value in vars(self._server).items()
            if name not in self._own_attributes and not name.startswith(("zd_", "_zd")) and not hasattr(Arbiter, name)
        }

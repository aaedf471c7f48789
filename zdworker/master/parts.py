"""What the parts of the supervisor share, and what they need of Gunicorn's arbiter.

Rules: only ``arbiter.py`` and ``reconfiguration.py`` know Gunicorn's private attributes. Everything else in the master
is handed an object of the shape of :class:`Gunicorn`, so that it can be tested without Gunicorn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from zdworker.core.events import Event
from zdworker.core.fleet import Fleet
from zdworker.master.children import Children
from zdworker.master.listeners import Listeners
from zdworker.master.observers import Observers
from zdworker.master.queues import Queues
from zdworker.master.reactor import Reactor
from zdworker.master.reconfiguration import Configuration
from zdworker.master.state import Descriptors


class Gunicorn(Protocol):
    """Gunicorn's side of the master."""

    log: Any
    """The master's logger (``gunicorn.glogging.Logger``)."""

    zd_configuration: Configuration
    """The configuration in force, and those that are kept."""

    zd_listeners: Listeners
    """The listening sockets."""

    def zd_hook(self, name: str, *arguments: Any) -> object:
        """Call a server hook of Gunicorn's or of zdworker's, and return what that returns; what it raises is logged."""

    def zd_print(self, text: str) -> None:
        """Write a text to the master's standard error, in its turn among the lines of the log."""

    def zd_state(self, descriptors: Descriptors) -> dict[str, Any]:
        """Return what Gunicorn's side goes on with in another program of this process (an upgrade)."""

    def zd_signals(self) -> list[int]:
        """Return the signals that have come and are not handled yet."""

    def zd_settle_log(self) -> bool:
        """Write what the log has waiting; return False if the log does not take it."""

    def manage_workers(self) -> None:
        """Hand a number of workers to the core that was asked for and has not reached it yet."""

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a signal to a worker; one that has just died is reaped as any other."""


@dataclass(frozen=True)
class Parts:
    """What reports to the core and what carries out its actions work with.

    ``publish`` hands an event to the core, after the actions that are being carried out.
    """

    gunicorn: Gunicorn
    fleet: Fleet
    reactor: Reactor
    children: Children
    observers: Observers
    queues: Queues
    publish: Callable[[Event], None]

"""The configurations of the master: the one in force, and those to which it may go back.

Rules:

* A configuration is taken over whole, or not at all. What a generation has evaluated is taken as it is; only hooks are
  evaluated here, and what that raises refuses the configuration.
* A configuration comes with its settings, its listening sockets and its environment. It is kept under the number of the
  generation that brought it (0: the master's own start) for as long as the core's facts name it.
* The core decides whether a configuration is taken over, and which one is restored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from gunicorn import version_info
from gunicorn.config import Chdir

from zdworker import gunicorn_config, log_files, texts
from zdworker.core import events
from zdworker.core.fleet import Fleet
from zdworker.errors import GenerationError
from zdworker.master.hook_environment import HookEnvironment
from zdworker.master.listeners import Listeners
from zdworker.master.observers import Observer
from zdworker.settings import Settings, amount


class Arbiter(Protocol):
    """What a configuration needs of Gunicorn's arbiter."""

    app: Any
    cfg: Any
    log: Any
    systemd: bool

    def setup(self, app: Any) -> None:
        """Go by ``app.cfg``."""


@dataclass
class Taken:
    """A configuration that is in force, or was; without listeners once its addresses were closed."""

    cfg: Any
    settings: Settings
    listeners: list[Any] = field(default_factory=list)


class Configuration(Observer):
    """What Gunicorn and zdworker go by.

    :param arbiter: Gunicorn's arbiter, whose configuration this is.
    :param sockets: all listening sockets, of whichever configuration.
    :raises SettingError: a ``zd_`` setting or hook in the arbiter's configuration is bad.
    """

    def __init__(self, arbiter: Arbiter, sockets: Listeners) -> None:
        cfg = arbiter.cfg
        settings = gunicorn_config.zd_settings(cfg)
        cfg.zd_hooks = gunicorn_config.zd_hooks(cfg)
        self.hook_environment = HookEnvironment(arbiter)
        self._arbiter = arbiter
        self._sockets = sockets
        self._start_environment = dict(cfg.env_orig)
        self._taken = {0: Taken(cfg, settings)}
        self._in_force = 0
        self._offers: dict[int, tuple[dict[str, Any], Settings | None]] = {}

    # -- what is in force ----------------------------------------------------------------------------------------

    @property
    def app(self) -> Any:
        """Gunicorn's application object."""
        return self._arbiter.app

    @property
    def cfg(self) -> Any:
        """Gunicorn's configuration (``gunicorn.config.Config``)."""
        return self._taken[self._in_force].cfg

    @property
    def settings(self) -> Settings:
        """The ``zd_`` settings."""
        return self._taken[self._in_force].settings

    @property
    def listeners(self) -> list[Any]:
        """The listening sockets, one for each address; Gunicorn's ``LISTENERS``."""
        return self._taken[self._in_force].listeners

    @listeners.setter
    def listeners(self, listeners: list[Any]) -> None:
        self._taken[self._in_force].listeners = listeners

    def policy(self) -> events.Policy:
        """Return what the core has to know of the configuration in force."""
        cfg, settings = self.cfg, self.settings
        surge, surge_is_percentage = amount(settings.max_surge)
        unavailable, unavailable_is_percentage = amount(settings.max_unavailable)
        return events.Policy(
            workers=cfg.workers,
            surge=surge,
            surge_is_percentage=surge_is_percentage,
            unavailable=unavailable,
            unavailable_is_percentage=unavailable_is_percentage,
            boot_timeout=settings.boot_timeout,
            min_ready=settings.min_ready_seconds,
            graceful_timeout=float(cfg.graceful_timeout),
            queue_per_slot=bool(cfg.reuse_port),
            exit_on_crash=settings.on_crash == "exit",
            development=bool(cfg.reload),
            rollback_window=settings.rollback_window,
            shutdown_delay=settings.shutdown_delay,
            configuration=self._in_force,
        )

    # -- what generations bring ----------------------------------------------------------------------------------

    def offer(self, generation: int, values: dict[str, Any], settings: Settings | None) -> None:
        """Remember what a generation has sent, for the case that it is taken over.

        :param values: the settings of Gunicorn that are plain data, as the generation has evaluated them.
        :param settings: its ``zd_`` settings; None when it is this process that evaluates them.
        """
        self._offers[generation] = values, settings

    def withdraw(self, generation: int) -> None:
        """Forget what a generation has sent: it has ended."""
        self._offers.pop(generation, None)

    def take(self, number: int) -> events.Policy:
        """Go by the configuration ``number``: one that is offered, or one that is kept.

        :return: what the core has to know of it.
        :raises GenerationError: that is impossible; nothing has changed.
        :raises SettingError: a ``zd_`` setting has a bad value.
        """
        self.hook_environment.note()
        try:
            if number in self._taken:
                self._take_kept(number)
            else:
                self._take_offered(number)
        finally:
            self._close_unused()
            self.hook_environment.pass_over()  # what the configuration has set was not set by a hook
        return self.policy()

    def _take_kept(self, number: int) -> None:
        kept = self._taken[number]
        kept.listeners = self._open(kept.cfg)
        try:
            self._switch(number)
        except GenerationError:
            kept.listeners = []
            raise

    def _take_offered(self, number: int) -> None:
        with gunicorn_config.restored_on_failure():
            self._taken[number] = self._evaluate(number)
            try:
                self._switch(number)
            except GenerationError:
                del self._taken[number]
                raise

    def _evaluate(self, number: int) -> Taken:
        """Return the configuration that a generation has offered, with its addresses opened."""
        values, settings = self._offers[number]
        file = gunicorn_config.file_of(self.cfg)
        cfg = gunicorn_config.evaluate(self.app, self._start_environment, values, str(Chdir.default))
        settings = settings or gunicorn_config.zd_settings(cfg)
        gunicorn_config.refuse_missing_file(cfg, file)
        gunicorn_config.refuse_foreign_class(cfg)
        gunicorn_config.refuse_new_logger(self.cfg, cfg)
        return Taken(cfg, settings, self._open(cfg))

    def _switch(self, number: int) -> None:
        """Go by another configuration, or by the same as before.

        :raises GenerationError: Gunicorn cannot set itself up with it.
        """
        before = self._in_force
        try:
            self._set_up(number)
        except BaseException as error:  # an exit, too: it would end the master
            self._set_up(before)
            raise GenerationError(f"the new configuration cannot be taken over: {texts.reason(error)}") from error

    def _set_up(self, number: int) -> None:
        gunicorn_config.unset_raw_environment(self.cfg)
        self._in_force = number
        self.app.cfg = self.cfg
        log_files.before_setup(self._arbiter.log)
        self._arbiter.setup(self.app)
        if version_info < (26, 1):  # since then Gunicorn does that by itself
            self._arbiter.log.setup(self.cfg)
            self._arbiter.log.cfg = self.cfg
        self.hook_environment.pass_over()

    def restore(self, number: int) -> None:
        """Go back to a configuration that is kept and whose addresses are still open."""
        if number != self._in_force:
            self.hook_environment.note()
            self._set_up(number)

    # -- what is kept --------------------------------------------------------------------------------------------

    def observe(self, fleet: Fleet, now: float) -> None:
        """Drop the configurations that the facts do not name any more, and close the addresses of no use."""
        kept = fleet.configurations() | {self._in_force}
        self._taken = {number: taken for number, taken in self._taken.items() if number in kept}
        reachable = {self._in_force, fleet.policy.configuration}
        if fleet.fallback_policy is not None:
            reachable.add(fleet.fallback_policy.configuration)
        for number in self._taken.keys() - reachable:
            # It is kept for a rollback, which opens its addresses again. Until then no worker would accept from them.
            self._taken[number].listeners = []
        self._close_unused()

    def _close_unused(self) -> None:
        self._sockets.keep([listener for taken in self._taken.values() for listener in taken.listeners])

    def _open(self, cfg: Any) -> list[Any]:
        """Return the listeners for ``cfg``: those that are open already, and new ones for new addresses.

        :raises GenerationError: a new address cannot be opened.
        """
        if cfg.address == self.cfg.address or self._arbiter.systemd or not self.listeners:
            return list(self.listeners)
        known: dict[Any, Any] = {}
        for taken in [*self._taken.values(), self._taken[self._in_force]]:  # the last one wins
            known.update(zip(taken.cfg.address, taken.listeners, strict=False))
        return self._sockets.open(cfg, known)

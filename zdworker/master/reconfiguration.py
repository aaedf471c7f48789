"""The configuration's side of the master: taken over whole from a new generation, or not at all.

Rules:

* What a generation has evaluated is taken as it is; only hooks are evaluated here; what that raises fails the reload.
* A configuration comes with its listeners, its settings and its environment. While the generation that brought it is on
  trial, all of what was before is kept, and so it is for a rollback.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from gunicorn import version_info
from gunicorn.arbiter import Arbiter
from gunicorn.config import Chdir

from zdworker import gunicorn_config
from zdworker.core import events
from zdworker.errors import ControlError, GenerationError
from zdworker.master.control import default_path
from zdworker.master.hook_environment import Environment
from zdworker.master.listeners import Listeners
from zdworker.settings import Settings

if TYPE_CHECKING:
    from zdworker.master.supervisor import Supervisor


class AdoptingArbiter(Arbiter):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn's arbiter, whose configuration can be replaced."""

    LISTENERS: list[Any]
    dirty_arbiter_pid: int
    _num_workers: int
    zd_settings: Settings
    zd_environment: Environment
    zd_listeners: Listeners
    _zd: Supervisor
    _zd_start_environment: dict[str, str]
    _zd_workers_told: int
    _zd_before_reload: tuple[Any, Settings, list[Any]] | None
    _zd_previous: tuple[Any, Settings, list[Any]] | None

    def zd_policy(self) -> events.Policy:
        """Return what the core has to know of the configuration."""
        settings = self.zd_settings
        workers = self.cfg.workers
        return events.Policy(
            workers=workers,
            surge=settings.surge(workers),
            unavailable=settings.unavailable(workers),
            boot_timeout=settings.boot_timeout,
            min_ready=settings.min_ready_seconds,
            graceful_timeout=float(self.cfg.graceful_timeout),
            queue_per_slot=bool(self.cfg.reuse_port),
            exit_on_crash=settings.on_crash == "exit",
            development=bool(self.cfg.reload),
            rollback_window=settings.rollback_window,
            shutdown_delay=settings.shutdown_delay,
        )

    def zd_hook(self, name: str, *arguments: Any) -> None:
        """Call a server hook, Gunicorn's or ours; what it raises is logged."""
        try:
            hook = self.cfg.zd_hooks.get(name) if name.startswith("zd_") else getattr(self.cfg, name)
            if hook is not None:
                hook(self, *arguments)
        except (Exception, SystemExit):
            self.log.exception("The hook %s raised; nothing else comes of it.", name)

    def zd_open_control(self) -> None:
        """Open the control socket where the settings want it; without one the site is served all the same."""
        wanted = self.zd_settings.control_socket
        try:
            path = "" if wanted == "none" else wanted or default_path(self.pid)
            self._zd.control.open(path)
        except ControlError as error:
            self.log.warning("The zdworker command will not reach this master: %s", error)

    def zd_adopt(self, values: dict[str, Any], settings: Settings | None) -> None:
        """Take the configuration of a new generation over, whole.

        :param values: the settings of Gunicorn that are plain data, as the generation has evaluated them.
        :param settings: likewise ours; None when it is this process that evaluates them.
        :raises GenerationError: that cannot be done; nothing has changed.
        :raises SettingError: one of our settings has a bad value.
        """
        self.zd_environment.note()
        file = gunicorn_config.file_of(self.cfg)
        try:
            with gunicorn_config.on_trial():
                cfg = gunicorn_config.evaluate(self.app, self._zd_start_environment, values, str(Chdir.default))
                settings = settings or gunicorn_config.zd_settings(cfg)
                gunicorn_config.refuse_missing_file(cfg, file)
                gunicorn_config.refuse_foreign_class(cfg)
                gunicorn_config.refuse_new_logger(self.cfg, cfg)
                self._zd_take(cfg, settings, self._zd_open(cfg))
        finally:
            self._zd_close_unused()
            self.zd_environment.pass_over()  # what the configuration has set is no hook's doing
        self._zd_taken()

    def _zd_taken(self) -> None:
        """Let everything know of a configuration that has been taken over."""
        self.zd_open_control()
        self.log.reopen_files()
        self.zd_hook("on_reload")
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGHUP)

    def _zd_take(self, cfg: Any, settings: Settings, listeners: list[Any]) -> None:
        before = self.cfg, self.zd_settings, self.LISTENERS
        try:
            gunicorn_config.forget_raw_environment(self.cfg)
            self._zd_swap(cfg, settings, listeners)
        except (Exception, SystemExit) as error:
            self._zd_swap_back(before)
            raise GenerationError(f"the new configuration cannot be taken over: {error!r}") from error
        # While a generation is on trial the way back leads past it; one that has proved itself is what to go back to.
        if self._zd_before_reload is None or self._zd.core.fleet.newest_verified:
            self._zd_before_reload = before

    def zd_settle_configuration(self, keep: bool) -> None:
        """A reload has ended: keep its configuration, or go back to the one before."""
        before, self._zd_before_reload = self._zd_before_reload, None
        if keep:
            self._zd_previous = before if self._zd.core.fleet.previous is not None else None
        elif before is not None:
            self.zd_environment.note()
            self._zd_swap_back(before)
            self.zd_open_control()
        self._zd_close_unused()

    def zd_take_previous(self) -> events.Policy | None:
        """Take the configuration back that the generation before had, and return what the core has to know of it."""
        if self._zd_previous is None:
            return None
        cfg, settings, _listeners = self._zd_previous
        self._zd_take(cfg, settings, self._zd_open(cfg))
        self._zd_taken()
        return self.zd_policy()

    def _zd_swap(self, cfg: Any, settings: Settings, listeners: list[Any]) -> None:
        self.app.cfg = cfg
        self.setup(self.app)
        if version_info < (26, 1):  # since then Gunicorn does that by itself
            self.log.setup(cfg)
            self.log.cfg = cfg
        self.zd_settings, self.LISTENERS = settings, listeners
        self.zd_environment.pass_over()
        self._zd_workers_told = self.num_workers  # the core has it with the news that the generation has loaded

    def _zd_swap_back(self, before: tuple[Any, Settings, list[Any]]) -> None:
        self._zd_swap(*before)
        # Not the configuration's: TTIN and TTOU count.
        self._num_workers = self._zd_workers_told = self._zd.core.fleet.size

    def _zd_close_unused(self) -> None:
        """Close the addresses that neither this configuration has nor the one that a reload may go back to."""
        used = [*self.LISTENERS, *(self._zd_before_reload[2] if self._zd_before_reload else [])]
        self.zd_listeners.keep(used)

    def _zd_open(self, cfg: Any) -> list[Any]:
        """Return the listeners for ``cfg``: those that are open already, and new ones for new addresses."""
        if cfg.address == self.cfg.address or self.systemd or not self.LISTENERS:
            return list(self.LISTENERS)
        known = dict(zip(self.cfg.address, self.LISTENERS, strict=False))
        if self._zd_before_reload is not None:
            known = {**dict(zip(self._zd_before_reload[0].address, self._zd_before_reload[2], strict=False)), **known}
        return self.zd_listeners.open(cfg, known)

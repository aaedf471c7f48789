"""The configurations of the master: the one in force, and those to which it may go back.

Rules:

* A configuration is taken over whole, or not at all. What a generation has evaluated is taken as it is; only hooks are
  evaluated here, and what that raises refuses the configuration.
* A configuration comes with its settings, its listening sockets, its environment, its working directory and the modules
  that it has imported (``module_cache.py``). It is kept under the number of the generation that brought it (0: the
  master's own start) for as long as the core's facts name it.
* The core decides whether a configuration is taken over, and which one is restored.
* Every address that the configuration in force names is listened on. Where systemd has handed the sockets over these
  are the ones that count, and ``bind`` opens nothing, as at Gunicorn's start.
* The first generation evaluates what the master has just evaluated. Where it gets another ``bind``, the command does
  not give the same one twice (it looks for a free port, and finds the master's own taken), and no reload follows it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gunicorn import sock, version_info
from gunicorn.config import Chdir, DefaultProcName

from zdworker import gunicorn_config, syscalls, texts
from zdworker.core import events
from zdworker.core.fleet import Fleet
from zdworker.errors import GenerationError
from zdworker.master import addresses
from zdworker.master.addresses import Place
from zdworker.master.hook_environment import HookEnvironment
from zdworker.master.listeners import Listeners
from zdworker.master.loaded_code import LoadedCode
from zdworker.master.module_cache import Imported, ModuleCache
from zdworker.master.observers import Observer
from zdworker.plain import can_be_written, set_attributes
from zdworker.settings import Settings, amount

_FACTS = (
    *("_start_environment", "_start_directory", "_directory_at_start", "_file_at_start"),
    *("_bind_is_used", "_bind_of_first_generation"),
)
"""Attributes of a configuration that another program of the master's process goes on with."""


class Arbiter(Protocol):
    """What a configuration needs of Gunicorn's arbiter."""

    app: Any
    cfg: Any
    log: Any
    systemd: bool

    def setup(self, app: Any) -> None:
        """Go by ``app.cfg``."""

    def zd_move_pidfile(self, cfg: Any, directory: str) -> None:
        """Have the pidfile where a configuration has it.

        :raises GenerationError: it cannot be moved there; it stays where it is.
        """


@dataclass
class Taken:
    """A configuration that is in force, or was; without listeners once its addresses were closed."""

    cfg: Any
    """Gunicorn's configuration (``gunicorn.config.Config``)."""
    settings: Settings
    """The ``zd_`` settings."""
    file: str
    """The file that it was read from, empty without one."""
    places: list[Place] = field(default_factory=list)
    """The addresses of its ``bind``."""
    listeners: list[Any] = field(default_factory=list)
    """The listening sockets, one for each address; Gunicorn's ``LISTENERS``."""
    imported: Imported | None = None
    """What it has imported, while another configuration is in force."""
    directory: str = ""
    """The working directory that it has chosen, empty if that is not known."""


@dataclass(frozen=True)
class Site:
    """Which site a master serves: its start directory by its logical path, its application, where it listens.

    ``application`` is None for one that is embedded in a program.
    """

    directory: str
    application: str | None
    bind: list[str]


@dataclass(frozen=True)
class Evaluated:
    """A configuration that the master has evaluated, and the directory in which that has left it."""

    cfg: Any
    settings: Settings
    file: str
    directory: str
    places: list[Place]
    imported: Imported


@dataclass(frozen=True)
class Offer:
    """What a generation has sent of its configuration."""

    values: dict[str, Any]
    settings: Settings | None
    import_path: list[str]


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
        self.modules = ModuleCache(arbiter.app)
        self.hook_environment = HookEnvironment(arbiter, self.modules.environment)
        self._arbiter = arbiter
        self._sockets = sockets
        self._start_environment = dict(cfg.env_orig)
        self._start_directory = str(Chdir.default)  # which is another one while a configuration is evaluated
        self.app = arbiter.app
        """Gunicorn's application object."""
        self._directory_at_start = os.getcwd()
        self.current = Taken(cfg, settings, gunicorn_config.file_of(cfg), directory=self._directory_at_start)
        """The configuration in force."""
        self._file_at_start = syscalls.file_state(self.current.file)
        self._bind_is_used = True
        self._bind_of_first_generation = ""
        self.loaded_code: LoadedCode | None = None
        """Where the master forks its workers itself: what they get of it, which must not have changed on disk."""
        self._taken = {0: self.current}
        self._in_force = 0
        self._offers: dict[int, Offer] = {}
        self._evaluating = 0

    # -- what is in force ----------------------------------------------------------------------------------------

    def policy(self) -> events.Policy:
        """Return what the core has to know of the configuration in force."""
        cfg, settings = self.current.cfg, self.current.settings
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
            canary=settings.canary_seconds,
            configuration=self._in_force,
        )

    def site(self) -> Site:
        """Return which site the master serves."""
        cfg = self.current.cfg
        named = cfg.default_proc_name  # by the command's argument, which comes before wsgi_app
        application = cfg.wsgi_app if named == DefaultProcName.default else named
        return Site(self._start_directory, application, [str(listener) for listener in self.current.listeners])

    # -- the start -----------------------------------------------------------------------------------------------

    def take_start(self, handed_over: Sequence[int]) -> None:
        """Take over the sockets that Gunicorn has opened, and open the addresses that it leaves out beside descriptors.

        :param handed_over: the numbers of the descriptors that systemd or an old master has handed over.
        """
        cfg, listeners = self.current.cfg, self.current.listeners
        places = self.current.places = addresses.places(cfg, os.getcwd())
        opened: list[Place | None] = [place for place in places if isinstance(place.key, int)]
        opened += [None] * len(handed_over)
        opened = opened or list(places)
        if self._arbiter.systemd or len(opened) != len(listeners):  # a hook may have opened others
            self._bind_is_used, opened = False, [None] * len(listeners)
        self._sockets.take(listeners, opened, cfg.reuse_port and not self._arbiter.systemd)
        if self._bind_is_used:
            self._open_what_is_missing(places)
        elif not gunicorn_config.has_default_bind(cfg):
            self._warn_of_unused_bind(places)
        if not cfg.workers:
            self._arbiter.log.warning(
                "workers is 0: nothing is served before zdworker scale, or a reload to another number"
            )

    def _open_what_is_missing(self, places: list[Place]) -> None:
        """Open, at the start, the addresses that Gunicorn leaves out because there are descriptors."""
        missing = [place for place in places if not self._sockets.claims(place)]
        if not missing:
            return
        # As all addresses at a start: one that is taken is tried for a while, and ends the master.
        cfg = gunicorn_config.with_bind(self.current.cfg, list(map(str, missing)))
        further = sock.create_sockets(cfg, self._arbiter.log)
        self._sockets.take(further, missing, cfg.reuse_port)
        self.current.listeners = [*self.current.listeners, *further]
        self._arbiter.log.info("Now listening at: %s", ", ".join(map(str, further)))

    def _warn_of_unused_bind(self, places: list[Place]) -> None:
        unused = [place for place in places if not self._sockets.listens(place)]
        if unused:
            self._arbiter.log.warning(
                "bind names %s, which is not used: the sockets were handed over, by systemd for one (there they are "
                "changed in the .socket unit)",
                addresses.shown(unused),
            )

    def compare_first(self, generation: int) -> str:
        """Return how the first generation's configuration differs from the master's, for the log; "" if it does not."""
        values, settings = self._offers[generation].values, self._offers[generation].settings
        cfg = self.current.cfg
        found = gunicorn_config.differences(cfg, values, str(Chdir.default))
        if settings is not None:
            found |= gunicorn_config.zd_differences(self.current.settings, settings)
        if not found:
            return ""
        text = "; ".join(f"{name} is {both}" for name, both in found.items())
        if self._changed_since_start(values):
            return f"its configuration was changed during the start, a reload is needed ({text})"
        text = (
            "the configuration is another one when it is evaluated again, as each reload does. The master goes by its "
            f"own, the workers by the other ({text})"
        )
        if "bind" in found:
            self._bind_of_first_generation = ", ".join(map(str, values["bind"]))
            text += ". Does the command look for a free port? A reload that would change bind is refused"
        return text

    def _changed_since_start(self, values: Mapping[str, Any]) -> bool:
        """Return whether a file was changed, or a link, between the master's evaluation and the first generation's."""
        file_now = syscalls.file_state(self.current.file)
        return file_now != self._file_at_start or values.get("chdir") != self._directory_at_start

    # -- an upgrade ----------------------------------------------------------------------------------------------

    def to_state(self) -> dict[str, Any]:
        """Return the configurations, for :meth:`adopt` in another program of this process (an upgrade).

        What is no plain data, the hooks above all, the other program evaluates itself.
        """
        self.hook_environment.note()
        attributes = self.hook_environment.server_attributes()
        return {
            "facts": {name: getattr(self, name) for name in _FACTS},
            "in_force": self._in_force,
            "taken": {number: _taken_to_state(taken) for number, taken in self._taken.items()},
            "offers": self._offers,
            "environment": self.hook_environment.changes(),
            "server_attributes": {name: value for name, value in attributes.items() if can_be_written(value)},
        }

    def adopt(self, state: dict[str, Any], listeners: Mapping[int, Any]) -> None:
        """Go on from what :meth:`to_state` has returned. The arbiter has the values of the configuration in force.

        :param listeners: Gunicorn's listener for each descriptor.
        """
        set_attributes(self, state["facts"])
        cfg, self._in_force = self.current.cfg, state["in_force"]
        cfg.env_orig = dict(self._start_environment)
        for number, known in state["taken"].items():
            own = cfg if number == self._in_force else gunicorn_config.with_values(cfg, known["values"])
            sockets = [listeners[descriptor] for descriptor in known["listeners"]]
            directory = known.get("directory", "")  # which the state of an earlier version does not have
            self._taken[number] = Taken(
                own, known["settings"], known["file"], known["places"], sockets, directory=directory
            )
        self._taken = {number: taken for number, taken in self._taken.items() if number in state["taken"]}
        self.current = self._taken[self._in_force]
        self._offers = dict(state["offers"])
        self.hook_environment.adopt(state["environment"], state["server_attributes"])

    # -- what generations bring ----------------------------------------------------------------------------------

    def offer(
        self, generation: int, values: dict[str, Any], settings: Settings | None, import_path: Sequence[str] = ()
    ) -> None:
        """Remember what a generation has sent, for the case that it is taken over.

        :param values: the settings of Gunicorn that are plain data, as the generation has evaluated them.
        :param settings: its ``zd_`` settings; None when it is this process that evaluates them.
        :param import_path: its ``sys.path``; empty when that is this process's.
        """
        self._offers[generation] = Offer(values, settings, list(import_path))

    def withdraw(self, generation: int) -> None:
        """Forget what a generation has sent: it has ended."""
        self._offers.pop(generation, None)
        if generation == self._evaluating:
            self.modules.give_up()

    def is_offered(self, generation: int) -> bool:
        """Return whether a generation has sent a configuration, and has not ended since."""
        return generation in self._offers

    def timeout_of(self, generation: int) -> float:
        """Return the ``timeout`` of the workers of a generation: its own, whatever is in force meanwhile."""
        offer = self._offers.get(generation)
        return float(offer.values.get("timeout", self.current.cfg.timeout) if offer else self.current.cfg.timeout)

    def is_kept(self, number: int) -> bool:
        """Return whether a configuration was in force before, and can be taken back."""
        return number in self._taken

    def evaluate(self, generation: int) -> Evaluated:
        """Evaluate a configuration that is offered, for its hooks. This may take long, and is called in a thread.

        :raises GenerationError: it raised, or cannot take the place of the one in force; or workers that are forked
            from this process would run code that has changed on disk.
        :raises SettingError: a ``zd_`` setting has a bad value.
        """
        offer = self._offers[generation]
        self._evaluating = generation
        with gunicorn_config.directory_restored():
            (cfg, settings, file), imported = self.modules.evaluate(lambda: self._evaluate(offer), offer.import_path)
            directory = os.getcwd()
            return Evaluated(cfg, settings, file, directory, self._places(cfg, directory), imported)

    def _evaluate(self, offer: Offer) -> tuple[Any, Settings, str]:
        before = self.current.file
        cfg = gunicorn_config.evaluate(self.app, before, self._start_environment, offer.values, str(Chdir.default))
        settings = offer.settings or gunicorn_config.zd_settings(cfg)
        if self.loaded_code is not None:
            self.loaded_code.refuse_outdated()
        return cfg, settings, gunicorn_config.file_of(cfg)

    def _places(self, cfg: Any, directory: str) -> list[Place]:
        """Return the addresses of a new configuration.

        :raises GenerationError: they cannot be listened on, or are not to be trusted.
        """
        places = addresses.places(cfg, directory)
        if not self._bind_is_used:
            return places
        addresses.refuse_unusable(places)
        before = self.current.places
        if self._bind_of_first_generation and addresses.keys(places) != addresses.keys(before):
            raise GenerationError(
                f"bind would change from {addresses.shown(before)} to {addresses.shown(places)}, but this command does "
                f"not give the same bind twice (right after the start it gave {self._bind_of_first_generation}): one "
                "that looks for a free port finds the master's own taken. Let it give the old one, or restart"
            )
        return places

    def take(self, number: int, evaluated: Evaluated | None) -> events.Policy:
        """Go by the configuration ``number``.

        :param evaluated: what :meth:`evaluate` has returned; None for a configuration that is kept.
        :return: what the core has to know of it.
        :raises GenerationError: that is impossible; nothing has changed.
        :raises SettingError: a ``zd_`` setting has a bad value.
        """
        self.hook_environment.note()
        try:
            if evaluated is None:
                self._take_kept(number)
            else:
                self._take_evaluated(number, evaluated)
        finally:
            self._close_unused()
            self.hook_environment.pass_over()  # what the configuration has set was not set by a hook
        return self.policy()

    def _take_kept(self, number: int) -> None:
        kept = self._taken[number]
        kept.listeners = self._open(kept.cfg, kept.places)
        _enter(kept.directory)
        try:
            self._switch(number)
        except GenerationError:
            kept.listeners = []
            _enter(self.current.directory)
            raise
        self._move_pidfile_back()

    def _take_evaluated(self, number: int, evaluated: Evaluated) -> None:
        listeners = self._open(evaluated.cfg, evaluated.places)
        old, new = addresses.keys(self.current.places), addresses.keys(evaluated.places)
        keeps_unix_socket = any(isinstance(key, str) for key in old & new)
        waiting = gunicorn_config.only_at_a_start(self.current.cfg, evaluated.cfg, keeps_unix_socket=keeps_unix_socket)
        before = os.open(".", syscalls.OPEN_DIRECTORY)
        try:
            self._taken[number] = Taken(
                evaluated.cfg,
                evaluated.settings,
                evaluated.file,
                evaluated.places,
                listeners,
                evaluated.imported,
                evaluated.directory,
            )
            os.chdir(evaluated.directory)
            self._arbiter.zd_move_pidfile(evaluated.cfg, evaluated.directory)
            self._switch(number)
        except (OSError, GenerationError):
            del self._taken[number]
            os.fchdir(before)
            self._move_pidfile_back()
            raise
        finally:
            os.close(before)
        if old == new:
            self._bind_of_first_generation = ""  # it is the same while the master listens: the command can be trusted
        elif not self._bind_is_used:
            self._warn_of_unused_bind(evaluated.places)
        if waiting:
            self._arbiter.log.warning(
                "Changed, but the master goes by the earlier value until a restart: %s", ", ".join(waiting)
            )
        self._tell_what_is_kept(evaluated.imported)

    def _tell_what_is_kept(self, imported: Imported) -> None:
        if imported.kept:
            self._arbiter.log.info(
                "Kept in the master, because an extension module is imported only once in a process: %s",
                ", ".join(imported.kept),
            )
        if imported.not_renewed:
            self._arbiter.log.warning(
                "The configuration can be evaluated in the master only with the installed packages that are imported "
                "there (%s): run zdworker upgrade if its hooks need newer ones.",
                ", ".join(imported.not_renewed),
            )

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
        # An evaluation that would begin in the middle of this would take the half of it for what was there before.
        with self.modules.undisturbed():
            gunicorn_config.unset_raw_environment(self.current.cfg)
            before, self._in_force, self.current = self.current, number, self._taken[number]
            if self.current.imported is not None:
                before.imported, self.current.imported = self.modules.exchange(self.current.imported), None
            self.app.cfg = self.current.cfg
            self._arbiter.setup(self.app)
            if version_info < (26, 1):  # since then Gunicorn does that by itself
                self._arbiter.log.setup(self.current.cfg)

    def restore(self, number: int) -> None:
        """Go back to a configuration that is kept and whose addresses are still open."""
        if number != self._in_force:
            self.hook_environment.note()
            _enter(self._taken[number].directory)
            self._set_up(number)
            self._move_pidfile_back()
            self.hook_environment.pass_over()

    def _move_pidfile_back(self) -> None:
        """Have the pidfile where the configuration has it that is in force again; this does not hinder its return."""
        try:
            self._arbiter.zd_move_pidfile(self.current.cfg, self.current.directory or os.getcwd())
        except (OSError, GenerationError) as error:  # the directory may be gone
            self._arbiter.log.warning("%s", error)

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

    def _open(self, cfg: Any, places: list[Place]) -> list[Any]:
        """Return the listeners for a configuration: those that are open already, and new ones for new addresses.

        :raises GenerationError: a new address cannot be opened.
        """
        if not self.current.listeners:
            return []  # the master ends, and has closed them
        return self._sockets.open(cfg, places if self._bind_is_used else [])

    def not_listened_on(self) -> str:
        """Return the addresses of the configuration in force that are not listened on, for a reader; "" if all are."""
        named = self.current.places if self._bind_is_used else []
        lost = [place for place in named if not self._sockets.listens(place)]
        return addresses.shown(lost) if lost else ""


def _enter(directory: str) -> None:
    """Change to the directory of a configuration that comes back, if it is still there."""
    with contextlib.suppress(OSError):
        os.chdir(directory)


def _taken_to_state(taken: Taken) -> dict[str, Any]:
    return {
        "values": json.loads(json.dumps(gunicorn_config.plain_values(taken.cfg))),  # as a generation sends them
        "settings": taken.settings,
        "file": taken.file,
        "places": taken.places,
        "listeners": [listener.fileno() for listener in taken.listeners],
        "directory": taken.directory,
    }

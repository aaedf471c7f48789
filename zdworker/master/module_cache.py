"""The modules that the configuration has imported, in the master's cache (``sys.modules``), and what it has changed in
the environment.

Rules:

* What was there before the first configuration was evaluated stays, and so do the standard library, Gunicorn, zdworker
  and the packages that these two use. Everything else has come with the configuration: through its file, the classes
  that it names, or its hooks.
* A configuration is evaluated without the modules of the one before it, so that it imports what is on disk, by the
  import path of its generation.
* A hook of the one before that is called meanwhile, in the main thread, has its own modules. The evaluation may have
  met one of these, so it is repeated; the last time it is hooks that may meet a module of the new configuration.
* The cache changes whole or not at all: when the evaluation has ended, however it has, everything is as before. The new
  modules come in when the configuration is taken over, and go with it when another one is. They are the same objects
  then as before, so that hooks of either go on working.
* The environment variables that a configuration sets come in and go with its modules. So a refused configuration leaves
  none behind, and none is taken for the work of a hook. Each is evaluated without those of the one before it: the one
  that is restored later may be any earlier one.
* An installed package is imported again only if one has changed since, or the evaluation fails without that: libraries
  hold what others have registered with them, and a second copy of one takes memory that Python does not give back.
* An extension module is not imported a second time, because most can be initialized only once in a process: the same
  object is handed out again. Of an installed package that has one, that goes for all modules, because the two halves of
  a library belong together.
* An evaluation that does not end is given up. Its thread imports nothing more, and no import waits for it.
* Another configuration may come into force while one is evaluated: a canary fails, and what was before is restored. The
  evaluation is given up then, and begins again when that one is in force whole. It does the same when the master forks
  a worker itself, which would have half of each of the two otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from zdworker.errors import GenerationError
from zdworker.master.launch import SAME_DEPLOY_NS

Result = TypeVar("Result")

OWN = frozenset({"__main__", "__mp_main__", "gunicorn", "zdworker"})
"""Names at the top that are not the configuration's, whenever they were imported."""

ROUNDS = 3
"""Times that an evaluation is made at most in which hooks are called."""

INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Directories of packages that were installed, and are not the site's own code."""


@dataclass
class Imported:
    """What a configuration has imported, and how its imports are found.

    ``bindings`` are the submodules that packages which stay in the cache have as attributes: package, name, submodule.
    ``since`` is from when on a change of an installed package counts, in nanoseconds since the epoch.
    ``kept`` names the extension modules (or the installed packages that have one) that were not imported again, and
    ``not_renewed`` the installed packages that could not be. ``environment`` has the variables that the configuration
    has changed, None for those that it has removed.
    """

    modules: dict[str, Any]
    bindings: list[tuple[Any, str, Any]]
    path: list[str]
    meta_path: list[Any]
    path_hooks: list[Any]
    since: int
    kept: list[str] = field(default_factory=list)
    not_renewed: list[str] = field(default_factory=list)
    environment: dict[str, str | None] = field(default_factory=dict)


@dataclass(eq=False)
class _Evaluation:
    """An evaluation that goes on in ``thread``, and what was taken out of the cache for it.

    ``environment`` has the variables without its changes. ``shared`` means that hooks see its modules, ``disturbed``
    that it may have seen those of a hook, ``outdated`` that another configuration has come into force since it began.
    ``at_hook`` are the variables at the beginning of the hook that is called, if it shares them.
    """

    thread: int
    before: Imported
    environment: dict[str, str]
    shared: bool
    disturbed: bool = False
    outdated: bool = False
    at_hook: dict[str, str] | None = None


class ModuleCache:
    """The master's cache, as far as it is the configuration's.

    :param app: Gunicorn's application, with the first configuration evaluated.
    """

    def __init__(self, app: Any) -> None:
        self._not_the_configurations = before_configuration(app)
        self.path = list(sys.path)
        """The import path when the first configuration had been evaluated."""
        self.since = time.time_ns() - SAME_DEPLOY_NS
        """From when on a change of an installed package counts, in nanoseconds since the epoch."""
        self._lock = threading.Lock()
        self._no_hook = threading.Condition(self._lock)
        self._hooks = 0
        self._turn = 0
        self._aside: Imported | None = None
        self._evaluation: _Evaluation | None = None
        self._in_force: dict[str, Any] = {}
        self._environment: dict[str, str | None] = {}
        """The variables that the configuration in force has set; those of the first one were there before."""
        self._replaced: dict[str, str | None] = {}
        """What they were before."""
        self._extensions = _Extensions()
        sys.meta_path.insert(0, self._extensions)
        # A thread of a forked worker may have the number of one whose evaluation was given up.
        os.register_at_fork(after_in_child=self._extensions.barred.clear)

    def evaluate(self, function: Callable[[], Result], path: Sequence[str]) -> tuple[Result, Imported]:
        """Call ``function`` without the modules of the configuration in force.

        If it fails, it is called once more: without the installed packages that are in the cache if it was called with
        them, and with them if not. Some of them can be executed only once in a process, and one may not fit the
        extension module that it finds.

        :param path: the generation's ``sys.path``; empty for that of the master.
        :return: what it has returned, and what it has imported. The cache is as before.
        :raises GenerationError: the evaluation was given up; everything else is what ``function`` has raised.
        """
        with self._lock:
            turn, installed = self._turn, self._installed()
        changed = self._have_changed(installed.values(), path)
        try:
            return self._attempt(function, path, turn, renew=changed)
        except BaseException as error:
            if not installed or isinstance(error, _GivenUpError):
                raise
            with contextlib.suppress(Exception):
                result, imported = self._attempt(function, path, turn, renew=not changed)
                imported.not_renewed = _tops(installed) if changed else []
                return result, imported
            raise

    def give_up(self) -> None:
        """Restore everything that an evaluation has changed which still goes on, and let it change nothing more."""
        with self._lock:
            self._turn += 1
            if self._evaluation is not None:
                self._give_up(self._evaluation)

    def exchange(self, imported: Imported) -> Imported:
        """Put in what another configuration has imported; return what the one in force has."""
        with self._lock:
            self._outdate()
            before = self._take_out()
            self._put_in(imported)
            before.environment = self._environment
            _set_environment(self._without_own(dict(os.environ)))
            self._environment, self._replaced = imported.environment, _change_environment(imported.environment)
            return before

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Have nothing evaluated meanwhile: what is evaluated now is given up, and begins again after that."""
        with self._lock:
            self._hooks += 1
            self._outdate()
        try:
            yield
        finally:
            self._leave()

    def _outdate(self) -> None:
        if self._evaluation is not None:
            self._evaluation.outdated = True
            self._give_up(self._evaluation)

    def environment(self) -> dict[str, str]:
        """Return the environment variables without those of a configuration that is being evaluated."""
        with self._lock:
            if self._evaluation is None or self._aside is not None:
                return dict(os.environ)
            return dict(self._evaluation.environment)

    @contextlib.contextmanager
    def of_hooks(self) -> Iterator[None]:
        """Have what the configuration in force has brought in its place, whatever is evaluated meanwhile."""
        with self._lock:
            self._hooks += 1
            if self._hooks == 1 and self._evaluation is not None:
                self._interrupt(self._evaluation)
        try:
            yield
        finally:
            self._leave()

    def _interrupt(self, evaluation: _Evaluation) -> None:
        if evaluation.shared:
            evaluation.at_hook = dict(os.environ)
            return
        evaluation.disturbed = True
        self._aside = self._take_out()
        self._aside.environment = _set_environment(evaluation.environment)
        self._put_in(evaluation.before)

    def _leave(self) -> None:
        with self._lock:
            self._hooks -= 1
            if self._hooks == 0:
                self._resume()
                self._no_hook.notify_all()

    def _resume(self) -> None:
        """Go on with the evaluation that hooks have interrupted, if it was not given up."""
        if self._evaluation is not None and self._aside is not None:
            before = self._take_out()
            # What the other thread could not import it has taken out of the cache by its name.
            before.modules = {**self._evaluation.before.modules, **before.modules}
            self._evaluation.before = before
            self._evaluation.environment = dict(os.environ)
            self._put_in(self._aside)
            _change_environment(self._aside.environment)
        elif self._evaluation is not None and self._evaluation.at_hook is not None:
            # What has changed meanwhile is the hook's: the other thread seldom sets anything in so short a time.
            changed = _differences(self._evaluation.at_hook, os.environ)
            self._evaluation.environment = _changed(self._evaluation.environment, changed)
            self._evaluation.at_hook = None
        self._aside = None

    # -- one evaluation ------------------------------------------------------------------------------------------

    def _attempt(
        self, function: Callable[[], Result], path: Sequence[str], turn: int, renew: bool
    ) -> tuple[Result, Imported]:
        disturbed = 0
        while True:
            evaluation = self._begin(path, turn, renew, shared=disturbed == ROUNDS - 1)
            result: Any = None
            failure: BaseException | None = None
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001  # it is raised again below, an exit too
                failure = error
            imported = self._end(evaluation)
            if evaluation.outdated:
                continue
            if imported is None:
                raise _GivenUpError("the evaluation of the configuration was given up") from failure
            if evaluation.disturbed:
                disturbed += 1
                continue
            if failure is not None:
                raise failure
            if path:
                imported.path = _physical(imported.path)
            return result, imported

    def _begin(self, path: Sequence[str], turn: int, renew: bool, shared: bool) -> _Evaluation:
        importlib.invalidate_caches()
        with self._lock:
            self._no_hook.wait_for(lambda: not self._hooks)
            if turn != self._turn:
                raise _GivenUpError("the evaluation of the configuration was given up")
            if self._evaluation is not None:
                self._give_up(self._evaluation)
            before = self._take_out()
            self._evaluation = _Evaluation(threading.get_ident(), before, dict(os.environ), shared)
            _set_environment(self._without_own(self._evaluation.environment))
            self.since = time.time_ns() - SAME_DEPLOY_NS
            self._extensions.handed_out.clear()
            # Python makes these again; those of releases that are gone would stay forever.
            sys.path_importer_cache.clear()
            sys.path = composed(path, self.path)
            if not renew:
                self._put_in_installed(before)
            return self._evaluation

    def _end(self, evaluation: _Evaluation) -> Imported | None:
        """Restore the cache; return what the evaluation has imported, None if it was given up."""
        with self._lock:
            self._no_hook.wait_for(lambda: not self._hooks)
            if self._evaluation is evaluation:
                return self._restore(evaluation)
            self._extensions.barred.discard(evaluation.thread)
            if self._evaluation is None:
                # A module that has failed is taken out of the cache by its name, which is that of the one in force now.
                for name, module in self._in_force.items():
                    sys.modules.setdefault(name, module)
            return None

    def _give_up(self, evaluation: _Evaluation) -> None:
        self._extensions.barred.add(evaluation.thread)
        self._restore(evaluation)
        _forget_locks(evaluation.thread)

    def _restore(self, evaluation: _Evaluation) -> Imported:
        imported = self._take_out()
        imported.kept = sorted(self._extensions.handed_out)
        if self._aside is None:  # otherwise a hook is called, and the environment is as before already
            imported.environment = _set_environment(self._without_own(evaluation.environment))
            _set_environment(evaluation.environment)
        self._aside = None
        self._put_in(evaluation.before)
        self._evaluation = None
        return imported

    def _without_own(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return an environment without what the configuration in force has set there, and hooks have left so."""
        own = {
            name: self._replaced[name] for name, value in self._environment.items() if environment.get(name) == value
        }
        return _changed(environment, own)

    # -- the cache -----------------------------------------------------------------------------------------------

    def _take_out(self) -> Imported:
        """Take the configuration's modules out of the cache, with all that leads to them."""
        used = _used_by_own()
        modules = {name: module for name, module in list(sys.modules.items()) if self._came_with(name, module, used)}
        bindings, since = _bindings(modules), self.since
        taken = Imported(modules, bindings, list(sys.path), list(sys.meta_path), list(sys.path_hooks), since)
        self._extensions.keep(modules)
        for name in modules:
            sys.modules.pop(name, None)
        for package, name, _module in taken.bindings:
            delattr(package, name)
        sys.meta_path = [finder for finder in taken.meta_path if _module_of(finder) not in modules]
        sys.path_hooks = [hook for hook in taken.path_hooks if _module_of(hook) not in modules]
        return taken

    def _put_in(self, imported: Imported) -> None:
        self._in_force, self.since = imported.modules, imported.since
        sys.modules.update(imported.modules)
        for package, name, module in imported.bindings:
            setattr(package, name, module)
        # New lists: an import in another thread may be going through those that are there.
        sys.path, sys.meta_path, sys.path_hooks = (
            list(imported.path),
            list(imported.meta_path),
            list(imported.path_hooks),
        )

    def _put_in_installed(self, before: Imported) -> None:
        modules = {name: module for name, module in before.modules.items() if _is_installed(module)}
        packages = {name.rpartition(".")[0] for name in modules}
        modules |= {name: module for name, module in before.modules.items() if name in packages}
        sys.modules.update(modules)
        for package, name, module in before.bindings:
            if module in modules.values():
                setattr(package, name, module)

    def _installed(self) -> dict[str, Any]:
        used, modules = _used_by_own(), list(sys.modules.items())
        return {
            name: module for name, module in modules if _is_installed(module) and self._came_with(name, module, used)
        }

    def _have_changed(self, installed: Iterable[Any], path: Sequence[str]) -> bool:
        """Return whether one of these modules has changed since it was imported, or is not on the import path now."""
        directories = {os.path.realpath(entry) for entry in composed(path, self.path)}
        for file in filter(None, map(_file_of, installed)):
            words = file.split(os.sep)
            place = max(index for index, word in enumerate(words) if word in INSTALLED)
            try:
                changed = os.stat(file).st_ctime_ns >= self.since
            except OSError:
                changed = True
            if changed or os.path.realpath(os.sep.join(words[: place + 1])) not in directories:
                return True
        return False

    def _came_with(self, name: str, module: object, used: set[str]) -> bool:
        top = name.partition(".")[0]
        return not (
            name in self._not_the_configurations or top in OWN or top in used or _is_standard(top, _file_of(module))
        )


def _set_environment(wanted: Mapping[str, str]) -> dict[str, str | None]:
    """Have this environment; return what was different, None for a variable that was not there."""
    before = _differences(wanted, os.environ)
    _change_environment(_differences(os.environ, wanted))
    return before


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that have changed, None for those that are gone."""
    return {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}


def _changed(environment: Mapping[str, str], values: Mapping[str, str | None]) -> dict[str, str]:
    """Return an environment with other values; None removes a variable."""
    together = {**environment, **values}
    return {name: value for name, value in together.items() if value is not None}


def _change_environment(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Set variables, or remove those that are None; return what they were."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


class _GivenUpError(GenerationError):
    """An evaluation was given up, and what it has done is undone."""


class _Extensions:
    """A finder and loader for the extension modules that were loaded before, and what belongs to them.

    It stands first in ``sys.meta_path``; every import asks it, in the importing thread.
    """

    def __init__(self) -> None:
        self.handed_out: set[str] = set()
        self.barred: set[int] = set()
        """The threads whose evaluation was given up."""
        self._modules: dict[str, tuple[Any, str]] = {}
        """Each module with the name of what it belongs to: an installed package, or itself."""
        self._specs: dict[str, Any] = {}

    def keep(self, modules: Mapping[str, Any]) -> None:
        """Remember the extension modules among ``modules``, and what belongs to them."""
        for name in [name for name, module in modules.items() if _is_extension(module)]:
            whole = _installed_package(name, modules) if _is_installed(modules[name]) else name
            for other, module in modules.items():
                if other == name or (whole != name and f"{other}.".startswith(f"{whole}.")):
                    self._modules.setdefault(other, (module, whole))

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find a module that is kept (``importlib.abc.MetaPathFinder``)."""
        if threading.get_ident() in self.barred:
            raise ImportError(f"{name} is not imported: the evaluation of this configuration was given up", name=name)
        if name not in self._modules:
            return None
        is_package = hasattr(self._modules[name][0], "__path__")
        return ModuleSpec(name, self, is_package=is_package)  # type: ignore[arg-type]  # it is a loader by its methods

    def create_module(self, spec: ModuleSpec) -> Any:
        """Return the module that is kept (``importlib.abc.Loader``)."""
        module, _whole = self._modules[spec.name]
        self._specs[spec.name] = getattr(module, "__spec__", None)
        return module

    def exec_module(self, module: Any) -> None:
        """Do not execute it again; only its specification has been replaced by now."""
        name = module.__spec__.name
        module.__spec__ = self._specs.pop(name)
        _module, whole = self._modules[name]
        self.handed_out.add(whole)
        for other, (sibling, belongs_to) in list(self._modules.items()):
            if belongs_to == whole:
                sys.modules.setdefault(other, sibling)


def before_configuration(app: Any) -> frozenset[str]:
    """Return the names of the modules that were in the cache before the first configuration was evaluated.

    The cache has its modules in the order of their imports, and Gunicorn puts a file's module into it before it is
    executed. A module that is named (``-c python:…``) comes after those that it imports, so that the last module is
    looked for that the program itself has: it was there before.
    """
    names = list(sys.modules)
    if "__config__" in sys.modules:
        return frozenset(names[: names.index("__config__")])
    if not str(app.cfg.settings["config"].value).startswith("python:"):
        return frozenset(names)
    known = {name for name in names if name.startswith("gunicorn.app.")} | {type(app).__module__}
    known |= {name for value in vars(sys.modules["__main__"]).values() if (name := _module_of(value)) is not None}
    last = max(index for index, name in enumerate(names) if name in known)
    return frozenset(names[: last + 1])


def composed(path: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return a generation's import path with the standard library of this interpreter, which may be another.

    :param path: the generation's; empty for ``own``.
    :param own: this process's.
    """
    if not path:
        return list(own)
    library = [entry for entry in own if _has_standard_library(entry)]
    before = [index for index, entry in enumerate(path) if _has_standard_library(entry)]
    place = before[0] if before else len(path)
    others = [entry for entry in path[place:] if not _has_standard_library(entry)]
    return [*path[:place], *library, *others]


def _used_by_own() -> set[str]:
    """Return the names at the top of what Gunicorn's and zdworker's modules refer to."""
    own = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in ("gunicorn", "zdworker")]
    values = (value for module in own for value in list(_namespace(module).values()))
    names = {_module_of(value) for value in values if isinstance(value, (ModuleType, FunctionType, type))}
    return {name.partition(".")[0] for name in names if name is not None}


def _bindings(modules: Mapping[str, Any]) -> list[tuple[Any, str, Any]]:
    """Return where packages that are not among ``modules`` have one of them as an attribute."""
    found = []
    for name, module in modules.items():
        above, _, last = name.rpartition(".")
        if above and above not in modules:
            package = sys.modules.get(above)
            if _namespace(package).get(last) is module:
                found.append((package, last, module))
    return found


def _namespace(module: object) -> Mapping[str, Any]:
    """Return the names in a module, without asking the module: the cache may hold any object."""
    return vars(module) if isinstance(module, ModuleType) else {}


def _module_of(value: object) -> str | None:
    """Return the name of a module, or of the module that a function or a class comes from, or a finder's class."""
    if isinstance(value, ModuleType):
        name = _namespace(value).get("__name__")
    else:
        name = getattr(value if isinstance(value, (FunctionType, type)) else type(value), "__module__", None)
    return name if isinstance(name, str) else None


def _file_of(module: object) -> str | None:
    file = _namespace(module).get("__file__")
    return file if isinstance(file, str) else None


def _is_standard(top: str, file: str | None) -> bool:
    """Return whether a module is the standard library's; one with such a name may be the site's."""
    if top not in sys.stdlib_module_names:
        return False
    places = tuple(os.path.join(place, "") for place in (sys.base_prefix, sys.base_exec_prefix))
    return file is None or (file.startswith(places) and not INSTALLED & set(file.split(os.sep)))


def _is_installed(module: object) -> bool:
    return not INSTALLED.isdisjoint((_file_of(module) or "").split(os.sep))


def _is_extension(module: object) -> bool:
    spec = _namespace(module).get("__spec__")
    built_in = getattr(spec, "origin", None) == "built-in"
    return built_in or (_file_of(module) or "").endswith(tuple(EXTENSION_SUFFIXES))


def _installed_package(name: str, modules: Mapping[str, Any]) -> str:
    """Return the package that an installed module belongs to: not a namespace, which many share."""
    words = name.split(".")
    for count in range(1, len(words)):
        package = ".".join(words[:count])
        if _file_of(modules.get(package)) is not None:
            return package
    return name


def _tops(names: Iterable[str]) -> list[str]:
    return sorted({name.partition(".")[0] for name in names})


def _has_standard_library(entry: object) -> bool:
    """Return whether an entry of ``sys.path`` is one of those for the standard library of any version."""
    if not isinstance(entry, str):
        return False
    name = os.path.basename(entry)
    return name == "lib-dynload" or (name.startswith("python") and name.endswith(".zip")) or _is_file(entry, "os.py")


def _is_file(directory: str, name: str) -> bool:
    return os.path.isfile(os.path.join(directory, name))


def _physical(path: Sequence[str]) -> list[str]:
    """Return an import path without links and repetitions, so that a late import comes from the same release."""
    return list(dict.fromkeys(map(os.path.realpath, path)))


def _forget_locks(thread: int) -> None:
    """Let no import wait for the modules that a thread has begun to import and will not finish.

    These locks are private to ``importlib``; where there are none by this name, an import of that module waits.
    """
    locks = getattr(sys.modules["_frozen_importlib"], "_module_locks", {})
    for name, reference in list(locks.items()):
        if getattr(reference(), "owner", None) == thread:
            locks.pop(name, None)

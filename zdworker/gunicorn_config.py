"""Gunicorn's configuration, as a generation evaluates it and the master takes it over.

Rules: the generation evaluates the configuration first, in a fresh interpreter, and sends the settings that are plain
data; the master takes these values as they are. The master evaluates the others (hooks, classes) itself, into a new
configuration object that is returned complete or not at all.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zdworker import roles, settings, syscalls, texts
from zdworker.errors import GenerationError, SettingError
from zdworker.ipc.messages import MESSAGE_MAX_BYTES


def is_plain(value: object, limit: int = MESSAGE_MAX_BYTES) -> bool:
    """Return whether ``value`` survives JSON unchanged (a tuple may become a list) and has at most ``limit`` bytes."""
    try:
        text = json.dumps(value)
        back = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return False
    if len(text) > limit:
        return False
    return bool(back == value) or (isinstance(value, tuple) and back == list(value))


def plain_values(cfg: Any) -> dict[str, Any]:
    """Return the settings of a ``gunicorn.config.Config`` that are plain data, by name."""
    return {name: setting.value for name, setting in cfg.settings.items() if is_plain(setting.value)}


NOT_COMPARED = frozenset({"chdir"})
"""Settings that a generation changes: it works in the physical directory, whatever link leads there."""

SECRET = frozenset({"raw_env", "raw_paste_global_conf", "logconfig_dict"})
"""Settings whose values may hold a password: only their names, and those of variables, are shown."""

SHOWN_MAX = 200
"""Characters of a value that are shown."""


def differences(cfg: Any, values: Mapping[str, Any], link: str) -> dict[str, str]:
    """Return the settings that have other values in another process, by name, each with both values for a reader.

    What means the same does not differ: another order, or a path that leads through ``link`` here.

    :param values: the settings there that are plain data.
    :param link: the directory in which this process was started, by its logical path.
    """
    own = plain_values(cfg)
    names = sorted(own.keys() & values.keys() - NOT_COMPARED)
    physical = os.path.realpath(link)
    return {
        name: _both(name, own[name], values[name])
        for name in names
        if _comparable(own[name], link, physical) != _comparable(values[name], link, physical)
    }


def zd_differences(own: settings.Settings, other: settings.Settings) -> dict[str, str]:
    """Return the same for the ``zd_`` settings; a version may be another one each time, and counts for nothing else."""
    here, there = own.to_plain(), other.to_plain()
    names = (name for name in here if name != "version")
    return {f"zd_{name}": _both(name, here[name], there[name]) for name in names if here[name] != there[name]}


def _comparable(value: Any, link: str, physical: str) -> Any:
    if isinstance(value, str):
        return value.replace(link, physical) if len(link) > 1 else value
    if isinstance(value, (list, tuple)):
        return sorted((_comparable(item, link, physical) for item in value), key=repr)
    if isinstance(value, dict):
        return {name: _comparable(item, link, physical) for name, item in value.items()}
    return value


def _both(name: str, here: Any, there: Any) -> str:
    if name == "raw_env":
        names = sorted({str(text).partition("=")[0] for text in {*(here or ())} ^ {*(there or ())}})
        return f"another one ({', '.join(names)})"
    if name in SECRET:
        return "another one"
    return f"{texts.line(repr(here), SHOWN_MAX)} and {texts.line(repr(there), SHOWN_MAX)}"


TRIAL = {
    "workers": 1,
    "errorlog": "-",
    "accesslog": None,
    "loglevel": "info",
    "statsd_host": None,
    "syslog": False,
    "reload": False,
}
"""What a trial sets: it writes into no log file of the site (which would belong to the user who tries), sends no
metrics of its own, and fails where a development server would show a traceback."""


def set_for_trial(cfg: Any) -> None:
    """Change a configuration so that a generation can be tried beside a running site, without touching that."""
    for name, value in TRIAL.items():
        cfg.set(name, value)
    # The one hook that Gunicorn's arbiter calls when it is made.
    hook = cfg.settings["nworkers_changed"]
    hook.value = hook.default


def set_values(cfg: Any, values: Mapping[str, Any]) -> None:
    """Set those of Gunicorn's settings that this version of Gunicorn has."""
    for name, value in values.items():
        if name in cfg.settings:
            cfg.settings[name].value = value


def with_values(cfg: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of a configuration with other values; what is no plain data (hooks) it has in common with it."""
    other = copy.copy(cfg)
    other.settings = {name: setting.copy() for name, setting in cfg.settings.items()}
    set_values(other, values)
    return other


def is_set(cfg: Any, hook: str) -> bool:
    """Return whether the configuration has a hook of its own, in the place of Gunicorn's, which does nothing."""
    setting = cfg.settings[hook]
    return setting.value is not setting.default


def has_default_bind(cfg: Any) -> bool:
    """Return whether ``bind`` is what it is without being set."""
    setting = cfg.settings["bind"]
    return bool(setting.value == setting.default)


def with_bind(cfg: Any, bind: list[str]) -> Any:
    """Return a copy of a configuration with another ``bind``."""
    other = copy.copy(cfg)
    setting = cfg.settings["bind"].copy()
    setting.value = bind
    other.settings = {**cfg.settings, "bind": setting}
    return other


def namespace(cfg: Any) -> Mapping[str, object]:
    """Return the names that the configuration file defines, empty without one.

    Gunicorn ignores names that it does not know, which include the ``zd_`` settings, but keeps the module: a file's as
    ``__config__`` (``gunicorn/app/base.py``, ``get_config_from_filename``), that of ``python:…`` under its own name.
    """
    location = cfg.settings["config"].value or ""
    name = location.removeprefix("python:") if location.startswith("python:") else "__config__"
    return vars(sys.modules[name]) if name in sys.modules else {}


def file_of(cfg: Any) -> str:
    """Return the file that the configuration was read from, empty without one."""
    return str(namespace(cfg).get("__file__") or "")


def zd_settings(cfg: Any) -> settings.Settings:
    """Return the ``zd_`` settings from the configuration file and the environment.

    :raises SettingError: one is unknown, has a bad value, or contradicts a setting of Gunicorn's.
    """
    given = {str(text).partition("=")[0] for text in cfg.settings["raw_env"].value or ()}
    for name in sorted(given & {name.upper() for name in settings.SPECS}):
        raise SettingError(
            f"raw_env sets {name}, which comes too late for zdworker: set {name.lower()} in the configuration file, or "
            f"{name} in the environment of the command"
        )
    found = settings.read(namespace(cfg), os.environ)
    if found.preload == "never" and cfg.preload_app:
        raise SettingError('zd_preload = "never" contradicts preload_app = True (--preload): take one of them out')
    return found


def zd_hooks(cfg: Any) -> dict[str, Callable[..., object]]:
    """Return the ``zd_`` hooks from the configuration file, by name.

    :raises SettingError: one is not a function, or takes other arguments.
    """
    return settings.hooks(namespace(cfg))


def evaluate(app: Any, file: str, environment: Mapping[str, str], values: Mapping[str, Any], directory: str) -> Any:
    """Return a new ``gunicorn.config.Config``, with ``values`` and with hooks that are evaluated in this process.

    :param app: Gunicorn's application; it is not changed.
    :param file: the file that the configuration in force was read from, empty without one.
    :param environment: the environment that the master was started with.
    :param values: the settings that are plain data, by name, as the generation has evaluated them.
    :param directory: where the master was started; relative paths start there, as they do in the generation. The
        working directory may be a release that has been deleted.
    :raises GenerationError: the configuration raised an exception or exited, or cannot take the place of ``app.cfg``;
        the text says why.
    """
    evaluated, before = copy.copy(app), app.cfg
    try:
        with _started_in(directory):
            evaluated.do_load_config()
    except SystemExit as error:
        # Gunicorn exits when the file has raised (get_config_from_filename in gunicorn/app/base.py).
        cause = error.__context__
        why = f"exit {error.code}" if cause is None else texts.reason(cause)
        raise GenerationError(f"the configuration cannot be evaluated in the master: {why}") from (cause or error)
    except Exception as error:
        raise GenerationError(f"the configuration cannot be evaluated in the master: {texts.reason(error)}") from error
    cfg = evaluated.cfg
    set_values(cfg, values)
    cfg.env_orig = dict(environment)
    cfg.zd_hooks = zd_hooks(cfg)
    refuse_missing_file(cfg, file)
    refuse_foreign_class(cfg)
    refuse_no_workers(before, cfg)
    refuse_new_logger(before, cfg)
    return cfg


@contextlib.contextmanager
def _started_in(directory: str) -> Iterator[None]:
    """Change to a directory; without it Gunicorn's default of ``chdir``, which has to exist, is ``/`` meanwhile."""
    from gunicorn.config import Chdir

    default = Chdir.default
    try:
        os.chdir(directory)
    except OSError:
        Chdir.default = "/"
    try:
        yield
    finally:
        Chdir.default = default


@contextlib.contextmanager
def directory_restored() -> Iterator[None]:
    """Restore the working directory after the body."""
    before = os.open(".", syscalls.OPEN_DIRECTORY)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def refuse_foreign_class(cfg: Any) -> None:
    """Refuse a worker class that is not one of zdworker's.

    :raises GenerationError: the configured class is another one.
    """
    if not isinstance(cfg.worker_class, type):  # Gunicorn gives the name of a class that its module does not have
        raise GenerationError(f"worker_class is {cfg.worker_class_str!r}: there is no such class")
    if not roles.is_zero_downtime(cfg.worker_class):
        raise GenerationError(
            f"worker_class is {cfg.worker_class_str!r} now: a reload can go only to a class of zdworker "
            "(zdworker.UvicornWorker, say); another one needs a restart"
        )


def refuse_missing_file(cfg: Any, before: str) -> None:
    """Refuse a configuration without a file if there was one, because all its settings would silently be defaults.

    :param before: the file that the master's configuration was read from, empty without one.
    :raises GenerationError: the file is gone.
    """
    if before and not file_of(cfg):
        raise GenerationError(f"the configuration file {before} is gone")


def refuse_patching() -> None:
    """Refuse a configuration that monkey-patches, because the master evaluates it next and must not be patched.

    :raises GenerationError: gevent has patched this process.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("os"):
        raise GenerationError(
            "the configuration monkey-patches (gevent.monkey.patch_all): take that out of it, the worker class patches "
            "where it is needed"
        )


def refuse_no_workers(before: Any, cfg: Any) -> None:
    """Refuse a number of workers with which a site that is served would not be any more.

    :param before: the configuration in force.
    :param cfg: the new one.
    :raises GenerationError: there are to be no workers any more.
    """
    if before.workers and not cfg.workers:
        raise GenerationError(
            "workers is 0, and the site would not be served any more: it must be 1 or more (zdworker scale 0, if that "
            "is what you want)"
        )


AT_A_START = (
    *("daemon", "reuse_port", "statsd_host", "statsd_prefix", "dogstatsd_tags"),
    *("control_socket", "control_socket_mode", "control_socket_disable"),
    *("dirty_apps", "dirty_workers", "dirty_threads", "dirty_timeout", "dirty_graceful_timeout"),
)
"""Settings of Gunicorn's that the master itself goes by, and only when its program starts."""

OF_UNIX_SOCKETS = ("umask", "user", "group")
"""Settings that the file of a Unix socket gets its mode and its owner from when it is made."""


def only_at_a_start(before: Any, cfg: Any, *, keeps_unix_socket: bool) -> list[str]:
    """Return the settings that differ and that a reload does not take over in the master, for the log.

    :param before: the configuration in force.
    :param cfg: the new one.
    :param keeps_unix_socket: a Unix socket is open that stays.
    """
    names = [name for name in AT_A_START if name in cfg.settings]  # older versions of Gunicorn do not have all
    found = [name for name in names if before.settings[name].value != cfg.settings[name].value]
    if keeps_unix_socket:
        changed = [name for name in OF_UNIX_SOCKETS if before.settings[name].value != cfg.settings[name].value]
        found += [f"{name} (of the Unix sockets that stay)" for name in changed]
    return found


def refuse_new_logger(before: Any, cfg: Any) -> None:
    """Refuse another ``logger_class``, because the master cannot replace its own logger before its next program.

    :param before: the configuration in force.
    :param cfg: the new one.
    :raises GenerationError: the class is another one.
    """
    if _class_name(before.settings["logger_class"].value) != _class_name(cfg.settings["logger_class"].value):
        raise GenerationError("logger_class has changed: zdworker upgrade has the master use it, then reload again")


def _class_name(setting: Any) -> str:
    # By name, because a class that the configuration file defines is a new object after each evaluation.
    return f"{setting.__module__}.{setting.__qualname__}" if isinstance(setting, type) else str(setting)


def unset_raw_environment(cfg: Any) -> None:
    """Unset the variables that ``raw_env`` of ``cfg`` has set, as Gunicorn's own reload does."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)

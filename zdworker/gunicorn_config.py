"""Gunicorn's configuration on its way from a generation to the master.

Rules: the generation evaluates the configuration first, in a fresh interpreter, and sends what is plain data; the
master takes these values as they are. What is not plain (hooks, classes) the master evaluates itself, into an
application's configuration of its own that is handed back whole or not at all.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zdworker import roles, settings, texts
from zdworker.errors import GenerationError
from zdworker.ipc.messages import LIMIT


def is_plain(value: object, limit: int = LIMIT) -> bool:
    """Return whether JSON gives ``value`` back as it was (a tuple may come back as a list), in ``limit`` bytes."""
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


def namespace(cfg: Any) -> Mapping[str, object]:
    """Return the names that the configuration file defines, empty without one.

    Gunicorn passes over names that it does not know, ours too, but keeps the module: ``__config__`` for a file
    (``gunicorn/app/base.py``, ``get_config_from_filename``), its own name for ``python:…``.
    """
    location = cfg.settings["config"].value or ""
    name = location.removeprefix("python:") if location.startswith("python:") else "__config__"
    return vars(sys.modules[name]) if name in sys.modules else {}


def file_of(cfg: Any) -> str:
    """Return the file that the configuration was read from, empty without one."""
    return str(namespace(cfg).get("__file__") or "")


def zd_settings(cfg: Any) -> settings.Settings:
    """Return our settings from the configuration file and the environment.

    :raises SettingError: one is unknown or has a bad value.
    """
    return settings.read(namespace(cfg), os.environ)


def zd_hooks(cfg: Any) -> dict[str, Callable[..., object]]:
    """Return our hooks from the configuration file.

    :raises SettingError: one is no function, or takes other arguments.
    """
    return settings.hooks(namespace(cfg))


def evaluate(app: Any, environment: Mapping[str, str], values: Mapping[str, Any], directory: str) -> Any:
    """Return a new ``Config`` for ``app``, which is left as it is: hooks evaluated here, ``values`` taken over.

    :param directory: where the master was started; relative paths begin there, as they do in the generation. The
        present directory may be a release that has been deleted.
    :raises GenerationError: the configuration raised, or ended the evaluation; the text says what.
    """
    trial = copy.copy(app)
    try:
        with _started_in(directory):
            trial.do_load_config()
    except SystemExit as error:
        raise GenerationError(f"the configuration cannot be evaluated in the master (exit {error.code})") from error
    except Exception as error:
        raise GenerationError(f"the configuration cannot be evaluated in the master: {texts.reason(error)}") from error
    cfg = trial.cfg
    for name, value in values.items():
        if name in cfg.settings:
            cfg.settings[name].value = value
    cfg.env_orig = dict(environment)
    cfg.zd_hooks = zd_hooks(cfg)
    return cfg


@contextlib.contextmanager
def _started_in(directory: str) -> Iterator[None]:
    """Be in a directory, and for Gunicorn be started in one that exists: it will not have another as its default."""
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
def restored_on_failure() -> Iterator[None]:
    """Have the configuration's module and directory as they were, should the new one be refused."""
    module = sys.modules.pop("__config__", None)
    before = os.open(".", os.O_RDONLY)
    try:
        yield
    except BaseException:
        os.fchdir(before)
        if module is not None:
            sys.modules["__config__"] = module
        raise
    finally:
        os.close(before)


def refuse_foreign_class(cfg: Any) -> None:
    """Refuse a worker class that is not one of ours.

    :raises GenerationError: it is not.
    """
    if not roles.is_zero_downtime(cfg.worker_class):
        raise GenerationError(
            f"worker_class is {cfg.worker_class_str!r} now: a reload can go only to a class of zdworker "
            "(zdworker.UvicornWorker, say); another one needs a restart"
        )


def refuse_missing_file(cfg: Any, before: str) -> None:
    """Refuse a configuration without a file where there was one: every setting in it would silently be the default.

    :param before: the file that the master's configuration was read from, empty without one.
    :raises GenerationError: it is gone.
    """
    if before and not file_of(cfg):
        raise GenerationError(f"the configuration file {before} is gone")


def refuse_patching() -> None:
    """Refuse a configuration that monkey-patches: the master, which evaluates it next, must stay as it is.

    :raises GenerationError: it does.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("os"):
        raise GenerationError(
            "the configuration monkey-patches (gevent.monkey.patch_all): take that out of it, the worker class patches "
            "where it is needed"
        )


def refuse_new_logger(before: Any, cfg: Any) -> None:
    """Refuse another ``logger_class``: the master's own log cannot change its kind.

    :raises GenerationError: it is another one.
    """
    if _class_name(before.settings["logger_class"].value) != _class_name(cfg.settings["logger_class"].value):
        raise GenerationError("logger_class has changed: that needs a restart")


def _class_name(setting: Any) -> str:
    # By name: a class that the configuration file defines is a new object each time the file is evaluated.
    return f"{setting.__module__}.{setting.__qualname__}" if isinstance(setting, type) else str(setting)


def unset_raw_environment(cfg: Any) -> None:
    """Undo what ``raw_env`` of the old configuration has set, as Gunicorn's own reload does."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)

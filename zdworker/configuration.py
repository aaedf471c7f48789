"""Gunicorn's configuration on its way from a generation to the master.

Rules: the generation evaluates the configuration first, in a fresh interpreter, and sends what is plain data; the
master takes these values as they are. What is not plain (hooks, classes) the master evaluates itself, into an
application's configuration of its own that is handed back whole or not at all.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from zdworker import settings
from zdworker.errors import GenerationError


def is_plain(value: object) -> bool:
    """Return whether JSON gives ``value`` back as it was (a tuple may come back as a list)."""
    try:
        back = json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
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


def evaluate(app: Any, environment: Mapping[str, str], values: Mapping[str, Any]) -> Any:
    """Return a new ``Config`` for ``app``, which is left as it is: hooks evaluated here, ``values`` taken over.

    :raises GenerationError: the configuration raised, or ended the evaluation; the text says what.
    """
    trial = copy.copy(app)
    old_cfg = app.cfg
    try:
        trial.do_load_config()
    except SystemExit as error:
        raise GenerationError(f"the configuration cannot be evaluated in the master (exit {error.code})") from error
    except Exception as error:
        raise GenerationError(f"the configuration cannot be evaluated in the master: {error!r}") from error
    cfg = trial.cfg
    for name, value in values.items():
        if name in cfg.settings:
            cfg.settings[name].value = value
    cfg.env_orig = dict(environment)
    _forget_raw_environment(old_cfg)
    return cfg


def _forget_raw_environment(cfg: Any) -> None:
    """Undo what ``raw_env`` of the old configuration has set, as Gunicorn's own reload does."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)

"""Whether a generation imports the application in its fork server.

Rules: ``preload_app`` (``--preload``) decides by word, and so does ``zd_preload = "never"``. With ``"auto"`` the fork
server imports the application, unless that import would differ from one in a worker: something of the configuration
runs in the worker before it, or makes the worker another user. Nor does it where a tool runs Gunicorn, because the fork
server could not start once more. What only the import shows is left to
:mod:`zdworker.forkserver.import_checks`.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

from zdworker import gunicorn_config, roles
from zdworker.settings import Settings

HOOKS = ("on_reload", "pre_fork", "post_fork")
"""Hooks that run after a fork server's import and before a worker's, in their order. What ``on_starting`` and
``when_ready`` set in the environment is there before both."""

METHODS = ("__new__", "__init__", "init_process", "init_signals", "load_wsgi", "patch", "setup", "zd_prepare")
"""Methods of a worker class that run before it imports the application."""


def by_word(cfg: Any, settings: Settings) -> bool | None:
    """Return whether the application is to be preloaded, or None if that is not decided by word."""
    if cfg.preload_app:
        return True
    return False if settings.preload == "never" else None


def tool(command: list[str]) -> str:
    """Return the tool that runs Gunicorn's command (``coverage run -m gunicorn app:app``), "" if there is none.

    A word "gunicorn" that follows no option may be anything (``manage.py gunicorn``).
    """
    name = command[1] if command[0] == "-m" else os.path.basename(command[0])
    if command[0] == "-c" or name.partition(".")[0] == "gunicorn":
        return ""
    behind = itertools.pairwise(command)
    runs = any(os.path.basename(word) == "gunicorn" and ("/" in word or before[:1] == "-") for before, word in behind)
    return name if runs else ""


def hindrance(cfg: Any, tool: str = "") -> str:
    """Return why the application should not be imported in a fork server, as a clause; "" if nothing is known.

    :param tool: the tool that runs Gunicorn's command.
    """
    hooks = [name for name in HOOKS if gunicorn_config.is_set(cfg, name)]
    if hooks:
        return f"the configuration has {' and '.join(hooks)}, which may expect that it is not imported yet"
    if _is_another_user(cfg):
        return "the workers are another user or group than the master"
    if cfg.reload:
        return "reload is on, which has each worker read the newest code"
    if tool:
        return f"{tool} runs Gunicorn, and could not do that again in a fork server that starts once more"
    methods = _methods_before_import(cfg.worker_class)
    if methods:
        return f"the worker class has its own {' and '.join(methods)}, which may expect that it is not imported yet"
    return ""


def _is_another_user(cfg: Any) -> bool:
    """Return whether ``gunicorn.util.set_owner_process`` would change something."""
    return bool((cfg.gid and (cfg.initgroups or cfg.gid != os.getgid())) or (cfg.uid and cfg.uid != os.getuid()))


def _methods_before_import(worker_class: Any) -> list[str]:
    """Return those of :data:`METHODS` that are not those of a worker class of zdworker's.

    A class that was made with the mixin alone gets them from a base that zdworker does not know.
    """
    own = next(kind for kind in worker_class.__mro__ if kind.__module__.split(".")[0] == roles.__name__.split(".")[0])
    return [name for name in METHODS if _attribute(worker_class, name) is not _attribute(own, name)]


def _attribute(kind: type, name: str) -> object:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)

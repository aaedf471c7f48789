"""The configuration: the ``zd_`` settings, names that mean nothing, addresses, files, and hooks that do not reach
workers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

from zdworker import gunicorn_config, settings
from zdworker.check.findings import Findings
from zdworker.settings import HOOKS, SPECS, nearest

UNIX_PATH_MAX = 107
"""Bytes of a Unix socket's path (unix(7): ``sun_path``, with a zero byte at its end)."""

LIKENESS = 0.85
"""How alike a name of the configuration file and a setting of Gunicorn's have to be for a slip to be suspected."""


def check_settings(cfg: Any, findings: Findings) -> bool:
    """Check the ``zd_`` settings; return whether a generation can be tried with them."""
    namespace = gunicorn_config.namespace(cfg)
    found = settings.problems(namespace, os.environ)
    for problem in found:
        findings.error(problem)
    for name in settings.unknown_environment(os.environ):
        near = nearest(name, [known.upper() for known in SPECS])
        meant = f": did you mean {near}?" if near else ": another program's, or misspelt"
        findings.warning(f"the environment sets {name}, which is no setting of zdworker{meant}")
    for name, near in slips(cfg, namespace).items():
        findings.warning(f"the configuration sets {name}, which is no setting: did you mean {near}?")
    if not found:
        given = sorted({name for name in SPECS if name in namespace or name.upper() in os.environ})
        findings.ok(", ".join(given) or "no zd_ setting is set")
    return not found


def slips(cfg: Any, namespace: Mapping[str, object]) -> dict[str, str]:
    """Return the names in a configuration file that are nearly those of settings, with these."""
    known = [*cfg.settings, *SPECS, *HOOKS]
    own = {
        name
        for name, value in namespace.items()
        if not name.startswith(("_", "zd_")) and name not in known and not isinstance(value, (ModuleType, type))
    }
    functions = [*HOOKS, *(name for name, setting in cfg.settings.items() if callable(setting.default))]
    likely = {
        name: nearest(name, functions if isinstance(namespace[name], FunctionType) else known, LIKENESS) for name in own
    }
    return {name: near for name, near in sorted(likely.items()) if near and near not in namespace}


def check_addresses(cfg: Any, findings: Findings) -> None:
    """Check what a start would find out only when it opens the addresses: directories of Unix sockets."""
    for address in cfg.address:
        if not isinstance(address, str) or address.startswith("\0"):
            continue
        path = os.path.abspath(address)
        obstacle = _obstacle_in(os.path.dirname(path))
        if len(os.fsencode(address)) > UNIX_PATH_MAX:
            obstacle = f"such a path may have {UNIX_PATH_MAX} bytes: choose a shorter one"
        elif os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
            obstacle = "that is a file and no socket: remove it, or name another path"
        if obstacle:
            findings.error(f"bind names unix:{address}, and {obstacle}", "bind")


def check_files(cfg: Any, findings: Findings) -> None:
    """Check what a start would write: the pidfile and the log files."""
    for name in ("pidfile", "errorlog", "accesslog"):
        file = getattr(cfg, name)
        if file in (None, "", "-"):
            continue
        path = os.path.abspath(file)
        if name != "pidfile" and os.path.exists(path):  # a pidfile is replaced, a log is gone on with
            obstacle = "" if os.access(path, os.W_OK) else f"this user may not write it: {_CHANGE_OWNER}"
        else:
            obstacle = _obstacle_in(os.path.dirname(path))
        if os.path.isdir(path):
            obstacle = "that is a directory: name a file"
        if obstacle:
            findings.error(f"{name} is {file}, and {obstacle}", "files")


_CHANGE_OWNER = "change its owner, or run this check as the user of the site"


def _obstacle_in(directory: str) -> str:
    """Return why no file can be made in a directory, "" if one can."""
    if not os.path.isdir(directory):
        return f"there is no directory {directory}: make it"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"this user may not make a file in {directory}: {_CHANGE_OWNER}"
    return ""


def check_hooks(names: list[str], findings: Findings) -> None:
    """Warn of hooks that run in the master.

    :param names: those of the configuration.
    """
    if names:
        findings.warning(
            f"{', '.join(names)}: called in the master, from which no worker is forked (and not called by this check). "
            "What they set in the environment reaches the workers, what they do to modules does not: have the "
            "application do it at its import, or post_fork"
        )
    else:
        findings.ok("none that runs in the master alone")

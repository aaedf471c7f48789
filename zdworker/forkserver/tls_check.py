"""The check of TLS before a generation is used, in a process that has the rights of its workers.

Rules:

* A worker drops its privileges (``user``, ``group``) before it reads the files, with every class. So a child of the
  fork server does the same, loads the files, and ends. A key that only root may read is refused if the workers are not
  root, as each of their handshakes would fail. Nothing that the check leaves behind gets into the workers.
* The child has no terminal, where OpenSSL would ask for the password of a key.
* What a hook may still change is not checked here: ``post_fork`` may write the files, and hooks in the master may set
  variables that the hook ``ssl_context`` reads. Each worker checks as well, and there a failure is a failed boot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from typing import Any, NoReturn

from zdworker import gunicorn_config, syscalls, texts
from zdworker.errors import GenerationError, TlsError

HOOKS_BEFORE_TLS = ("on_reload", "pre_fork", "post_fork", "post_worker_init")
"""The hooks that are called after the generation has loaded and before its workers read the files."""

HOOKS_IN_THE_MASTER = ("on_starting", "when_ready", "child_exit", "nworkers_changed")
"""Further hooks, whose changes of the environment reach the workers with the order to fork one."""

_waitpid = os.waitpid
"""As it is before a worker class monkey-patches: gevent's watches children from a hub that does not run here."""


def refuse_bad_tls(worker_class: Any, cfg: Any) -> None:
    """Refuse a configuration with TLS that no worker could load.

    :param worker_class: a class of zdworker's.
    :param cfg: Gunicorn's configuration.
    :raises GenerationError: it cannot be loaded; the text names the setting, the file and the reason.
    """
    if _a_hook_may_change_it(cfg):
        return
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as found:
        try:
            pid = syscalls.fork()
            if pid == 0:
                _check(worker_class, cfg, writer)
        finally:
            os.close(writer)
        with contextlib.suppress(ChildProcessError):
            _waitpid(pid, 0)
        os.set_blocking(reader, False)  # a process that the hook has started may have the other end open
        reason = (found.read() or b"").decode(errors="replace")
    if reason:
        raise GenerationError(f"TLS cannot load: {reason}")


def _a_hook_may_change_it(cfg: Any) -> bool:
    if any(gunicorn_config.is_set(cfg, name) for name in HOOKS_BEFORE_TLS):
        return True
    in_master = any(gunicorn_config.is_set(cfg, name) for name in HOOKS_IN_THE_MASTER)
    return gunicorn_config.is_set(cfg, "ssl_context") and (in_master or bool(gunicorn_config.zd_hooks(cfg)))


def _check(worker_class: Any, cfg: Any, writer: int) -> NoReturn:
    """Be the child: load TLS, and write to ``writer`` why that fails."""
    try:
        _become_like_a_worker(worker_class, cfg)
        reason = ""
        try:
            worker_class.zd_check_tls(cfg)
        except TlsError as error:
            if error.__cause__ is not None:  # a hook's, whose place is of interest
                traceback.print_exception(error.__cause__)
            reason = str(error)
        except BaseException as error:  # noqa: BLE001  # whatever a hook raises, exits too
            traceback.print_exc()
            reason = texts.reason(error)
        os.write(writer, texts.lines(reason, texts.REASON_MAX).encode()[: texts.REASON_MAX])
    finally:
        syscalls.plain_exit(0)


def _become_like_a_worker(worker_class: Any, cfg: Any) -> None:
    """Do what a worker has done by then, and let go of the terminal. What fails here is for the worker to report."""
    from gunicorn import util

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    worker_class.zd_prepare(cfg)
    util.set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
    syscalls.set_death_signal(signal.SIGKILL)  # last, because a change of user clears it

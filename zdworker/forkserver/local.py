"""Generations without a fork server: the master itself forks the workers.

Rules: this is for a command that cannot be run a second time (a program read from standard input, a child of
multiprocessing or of a program that forks) and for systems without a subreaper. Reloads are rolling and ready-gated as
with fork servers. Each worker loads the application itself, and nothing is preloaded. What the master has imported by
then is in the workers as it was: a reload is refused once that has changed on disk (``master/loaded_code.py``).
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass, field
from typing import Any, NoReturn

from zdworker import roles, syscalls
from zdworker.forkserver import worker_boot
from zdworker.ipc.messages import HookData, Spawn
from zdworker.settings import Settings


@dataclass
class LocalGeneration:
    """What a worker takes over from the master itself (a :class:`~zdworker.forkserver.worker_boot.LoadedGeneration`).

    :param master: the master's pid.
    """

    number: int
    master: int
    app: Any
    cfg: Any
    log: Any
    settings: Settings
    worker_class: Any
    hook_data: HookData = field(default_factory=HookData)

    def fork(self, hook_data: HookData, spawn: Spawn, descriptors: list[int], listeners: list[Any]) -> int:
        """Fork the worker that ``spawn`` asks for, and return its pid.

        :param hook_data: what hooks have set.
        :param descriptors: in the order of ``spawn.descriptors``.
        :param listeners: the master's listening sockets, and the like, which the child closes.
        :raises OSError: the kernel refuses the fork.
        """
        self.hook_data = hook_data
        worker_boot.flush_streams()  # what is still in a buffer would be written once more by each worker
        signal.pthread_sigmask(signal.SIG_BLOCK, syscalls.HELD_SIGNALS)
        try:
            pid = syscalls.fork(os.fork)
            if pid == 0:
                self._run_worker(spawn, descriptors, listeners)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, syscalls.HELD_SIGNALS)

    def _run_worker(self, spawn: Spawn, descriptors: list[int], listeners: list[Any]) -> NoReturn:
        with contextlib.suppress(BaseException):
            own: dict[str, list[int]] = {}
            for name, number in zip(spawn.descriptors, descriptors, strict=True):
                own.setdefault(name, []).append(os.dup(number))
            for listener in listeners:
                listener.close()
            roles.in_generation = True
            worker_boot.become_worker(self, spawn, own).finish()
        syscalls.plain_exit(3)

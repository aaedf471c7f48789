"""The second-best generation, where there can be no fork server: workers are forked from the master.

Rules: this is for a command that cannot be run again (a program read from standard input, a child of multiprocessing)
and for systems without a subreaper. Reloads are rolling and ready-gated all the same, and each worker imports the
application by itself, so its code is fresh; what the configuration imported stays as it was at the start, and nothing
is preloaded.
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
    """What a worker needs of its generation, taken from the master itself (see ``forkserver.Generation``)."""

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
        :param listeners: the master's own, closed in the child.
        :raises OSError: the kernel refuses.
        """
        self.hook_data = hook_data
        signal.pthread_sigmask(signal.SIG_BLOCK, syscalls.HELD)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(spawn, descriptors, listeners)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, syscalls.HELD)

    def _be_worker(self, spawn: Spawn, descriptors: list[int], listeners: list[Any]) -> NoReturn:
        with contextlib.suppress(BaseException):
            own: dict[str, list[int]] = {}
            for name, number in zip(spawn.descriptors, descriptors, strict=True):
                own.setdefault(name, []).append(os.dup(number))
            for listener in listeners:
                listener.close()
            roles.in_generation = True
            worker_boot.become_worker(self, spawn, own)
        os._exit(3)

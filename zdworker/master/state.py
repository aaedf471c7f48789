"""What the state of an upgrade is kept in: a sealed memory file, and descriptors that go along by name.

Rules: each part of the master writes out what it knows (``to_state``), with the numbers of its descriptors, and goes on
from that in the next program (``adopt``, ``from_state``). ``plain.py`` turns all of it into JSON and back.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable


class Descriptors:
    """The descriptors that go along."""

    def __init__(self) -> None:
        self.named: dict[str, int] = {}

    def keeper(self, owner: str) -> Callable[[int], int]:
        """Return what has a descriptor of ``owner`` go along, and returns its number."""

        def keep(number: int) -> int:
            self.named[f"{owner} {len(self.named)}"] = number
            return number

        return keep

    def set_inheritable(self, inheritable: bool) -> None:
        """Set or clear the close-on-exec flag of all of them."""
        for number in self.named.values():
            os.set_inheritable(number, inheritable)


def sealed(data: bytes) -> int:
    """Return the descriptor of a memory file that holds ``data`` and cannot be changed (memfd_create(2), F_ADD_SEALS in
    fcntl(2)).

    :raises OSError: there is no memory or no descriptor for it.
    """
    number = os.memfd_create("zdworker-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while data:
            data = data[os.write(number, data) :]
        # Named here and not above, because there is none of it elsewhere than on Linux.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(number)
        raise
    return number

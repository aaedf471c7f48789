"""The parent of a contender: whatever is orphaned below becomes its child, and it reaps all (prctl(2), "SUBREAPER").

Rules:

* Standard library only: this file is also the program, ``python keeper.py COMMAND ...``. It writes the command's pid
  to standard output and ends when it has no child left.
* Every process below is reaped here or by a parent below, so the processor time of the living and the reaped (proc(5),
  ``utime`` to ``cstime``) is that of all there ever were, a daemon and a second master too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Start the command and reap until nothing is left."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    print(process.pid, flush=True)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


if __name__ == "__main__":
    main()

"""The directory of the control sockets of a user's masters.

Rules: the master makes the directory and the command only reads it. Both must compute the same path.
"""

from __future__ import annotations

import os
from pathlib import Path


def directory_of(uid: int) -> Path:
    """Return the directory of a user's control sockets, whether it exists or not."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") if uid == os.geteuid() else None
    for parent in (runtime, f"/run/user/{uid}", "/run" if uid == 0 else None):
        if parent and os.path.isdir(parent):
            return Path(parent) / "zdworker"
    # Not tempfile.gettempdir(), which raises where nothing can be written; only the control socket is missing then.
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"zdworker-{uid}"  # noqa: S108  # made for this user alone

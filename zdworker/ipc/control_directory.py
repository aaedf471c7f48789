"""Where the control sockets of a user's masters are.

Rules: the master makes the directory, the command only looks into it; both have to come to the same path.
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
    # Not tempfile.gettempdir(): that raises where nothing can be written, and there is no control socket then, no more.
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"zdworker-{uid}"  # noqa: S108  # made for this user alone

"""The directories of the control sockets of a user's masters.

Rules:

* The master makes a directory and the command only reads it. Both must compute the same path.
* A directory of one user's is never made in the runtime directory of another one, which ``sudo -E`` leaves in the
  environment.
* What is in a directory that others can write to, or that belongs to another user, was possibly put there by others:
  the master does not listen in it, and the command does not look into it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def directories_of(uid: int) -> list[Path]:
    """Return the directories in which a user's masters have their control sockets, whether they exist or not.

    A master uses the first. The command looks into the temporary one, too, because the master may have been started
    when the user had no session, and so no runtime directory.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "") if uid == os.geteuid() else ""
    parents = (runtime, f"/run/user/{uid}", "/run" if uid == 0 else "")
    found = [Path(parent) / "zdworker" for parent in parents if parent.startswith("/") and _belongs_to(parent, uid)]
    # Not tempfile.gettempdir(), which raises where nothing can be written; only the control socket is missing then.
    temporary = os.environ.get("TMPDIR", "")
    parent = temporary if temporary.startswith("/") else "/tmp"  # noqa: S108  # made for this user alone
    return [*found[:1], Path(parent) / f"zdworker-{uid}"]


def directory_of(uid: int) -> Path:
    """Return the directory in which a master of this user makes its control socket, whether it exists or not."""
    return directories_of(uid)[0]


def is_private(directory: Path, uid: int) -> bool:
    """Return whether a directory belongs to a user and no other one can enter it; a link to one is not enough.

    :raises OSError: it does not exist, or cannot be looked at.
    """
    found = directory.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def _belongs_to(directory: str, uid: int) -> bool:
    try:
        found = os.stat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid

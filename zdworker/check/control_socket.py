"""The control socket: whether the master could open one, so that the ``zdworker`` command reaches it.

Rules: this only looks. The socket would be a running master's, and the directory is made by the first master.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zdworker.check.configuration import UNIX_PATH_MAX
from zdworker.check.findings import Findings
from zdworker.ipc.control_directory import directory_of, is_private


def check(path: str, findings: Findings) -> None:
    """Check where the control socket is to be.

    :param path: ``zd_control_socket``.
    """
    if path == "none":
        findings.ok("none (zd_control_socket): the zdworker command will not reach the master")
    elif path:
        _check_path(path, findings)
    else:
        _check_directory(directory_of(os.geteuid()), findings)


def _check_path(path: str, findings: Findings) -> None:
    directory = Path(path).parent
    try:
        mode = directory.stat().st_mode
    except OSError as error:
        findings.error(
            f"{path} (zd_control_socket): {directory} cannot be looked at ({error.strerror}): make it for the user of "
            "the site (RuntimeDirectory= in a systemd unit), or run this check as that user"
        )
        return
    if not os.access(directory, os.W_OK | os.X_OK):
        findings.error(
            f"{path} (zd_control_socket): this user may not make a socket in {directory}: change its owner, or "
            "run this check as the user of the site"
        )
    elif os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        findings.error(f"{path} (zd_control_socket) is a file and no socket: remove it, or name another path")
    elif mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        findings.warning(
            f"{path} (zd_control_socket): everybody may remove files in {directory} and put others in their place: "
            f"chmod o-w {directory}"
        )
    else:
        findings.ok(path)


def _check_directory(directory: Path, findings: Findings) -> None:
    if len(os.fsencode(directory / f"{os.getpid()}.sock")) > UNIX_PATH_MAX:  # a master's pid has about as many digits
        findings.error(
            f"{directory} is too long: a socket's path may have {UNIX_PATH_MAX} bytes. Set XDG_RUNTIME_DIR to a "
            "shorter directory of this user's, or zd_control_socket to a path"
        )
        return
    try:
        private = is_private(directory, os.geteuid())
    except FileNotFoundError:
        if os.access(directory.parent, os.W_OK | os.X_OK):
            findings.ok(f"in {directory}, which the master makes")
        else:
            findings.error(
                f"{directory} cannot be made: set XDG_RUNTIME_DIR or TMPDIR to a directory of this user's, or "
                "zd_control_socket to a path"
            )
        return
    except OSError as error:
        findings.error(f"{directory} cannot be looked at: {error.strerror}")
        return
    if private:
        findings.ok(f"in {directory}")
    else:
        findings.error(
            f"{directory} is not a directory that only this user can enter, so the master makes no control socket in "
            f"it: chmod 700 {directory} if it is this user's, else remove it"
        )

"""Which version of the application a generation is, as a short text for its users: a label.

Rules: the user's own word counts (``zd_version``), then the release that a link leads to (``/srv/shop/current`` to
``/srv/shop/releases/42``: "42"), then ``git describe``. Nothing here fails a load: what cannot be found out is left
empty.
"""

from __future__ import annotations

import os
import shutil

from zdworker.settings import LABEL_MAX

GIT_TIMEOUT_S = 2.0
"""Seconds that ``git`` may take; it needs some milliseconds, but a repository can be on a disk that does not answer."""


def label_of(setting: str, directory: str) -> str:
    """Return the label of the application that is served from ``directory``, "" if nothing tells.

    :param setting: ``zd_version``, "" if it is not set.
    :param directory: the start directory, by its logical path.
    """
    return setting or _release(directory) or _commit(directory)


def _release(directory: str) -> str:
    """Return the name of what the last link in the path leads to, "" without one."""
    path = os.path.abspath(directory)
    while path != os.path.dirname(path):
        if os.path.islink(path):
            return os.path.basename(os.path.realpath(path))[:LABEL_MAX]
        path = os.path.dirname(path)
    return ""


def _commit(directory: str) -> str:
    """Return what ``git describe`` says of the working copy that ``directory`` is in, "" if it is in none."""
    path = os.path.abspath(directory)
    while not os.path.exists(os.path.join(path, ".git")):
        if path == os.path.dirname(path):
            return ""
        path = os.path.dirname(path)
    git = shutil.which("git")
    if git is None:
        return ""
    import subprocess  # only here, because most deploys need none

    words = [git, "-C", path, "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()[:LABEL_MAX]

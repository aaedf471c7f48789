"""Which version of the application a generation is, as a short text for its users: a label.

Rules:

* The user's own word counts (``zd_version``), then the release that a link leads to (``/srv/shop/current`` to
  ``/srv/shop/releases/42``: "42"), then git's name for the commit.
* A link further up in the path may be there for another reason (``/var/www`` to ``/data/www``). It counts before git
  if it is the start directory itself or leads to a place beside it, and after git otherwise.
* Nothing here fails a load: what cannot be found out is left empty.
* Git writes nothing: a deploy may work in that directory at the same time.
"""

from __future__ import annotations

import os
import shutil

from zdworker.settings import LABEL_MAX

GIT_TIMEOUT_S = 2.0
"""Seconds that each answer of ``git`` may take. It needs some milliseconds, but the disk may not answer."""


def label_of(setting: str, directory: str) -> str:
    """Return the label of the application that is served from ``directory``, "" if nothing tells.

    :param setting: ``zd_version``, "" if it is not set.
    :param directory: the start directory, by its logical path.
    """
    link = _last_link(directory)
    if setting or link is None:
        return setting or _commit(directory)
    release = os.path.basename(os.path.realpath(link))[:LABEL_MAX]
    return release if _leads_to_releases(link, directory) else _commit(directory) or release


def _last_link(directory: str) -> str | None:
    """Return the last link in a path, None without one."""
    path = os.path.abspath(directory)
    while path != os.path.dirname(path):
        if os.path.islink(path):
            return path
        path = os.path.dirname(path)
    return None


def _leads_to_releases(link: str, directory: str) -> bool:
    """Return whether a link is the start directory itself, or leads to a place in the directory that it is in."""
    beside = os.path.realpath(os.path.dirname(link))
    is_in_root = beside == os.path.dirname(beside)
    return link == os.path.abspath(directory) or (not is_in_root and os.path.realpath(link).startswith(beside + os.sep))


def _commit(directory: str) -> str:
    """Return git's name for the commit in the working copy that ``directory`` is in, "" if it is in none.

    It ends with "-dirty" if files differ from it.
    """
    path = os.path.abspath(directory)
    while not os.path.exists(os.path.join(path, ".git")):
        if path == os.path.dirname(path):
            return ""
        path = os.path.dirname(path)
    name = _ask_git(path, "describe", "--always", "--tags")
    # Not "describe --dirty": it writes the index, and leaves its lock behind if it is killed.
    changed = name and _ask_git(path, "status", "--porcelain", "--untracked-files=no")
    return (f"{name}-dirty" if changed else name)[:LABEL_MAX]


def _ask_git(directory: str, *words: str) -> str:
    """Return what git answers, "" if it cannot."""
    git = shutil.which("git")
    if git is None:
        return ""
    import subprocess  # only here, because most deploys need none

    try:
        done = subprocess.run(
            [git, "-C", directory, "--no-optional-locks", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()

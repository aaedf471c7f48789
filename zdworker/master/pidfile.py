"""The pidfile, which a reload moves to where the new configuration has it, as a HUP to stock Gunicorn does."""

from __future__ import annotations

import os
from typing import Any

from gunicorn.pidfile import Pidfile

from zdworker import texts
from zdworker.errors import GenerationError


def make_absolute(pidfile: Any, directory: str) -> None:
    """Have a pidfile found when the working directory is another one.

    :param pidfile: Gunicorn's ``Pidfile``; None where there is none.
    :param directory: where its path starts.
    """
    if pidfile is not None and pidfile.fname:
        pidfile.fname = os.path.join(directory, pidfile.fname)


def moved(own: Any, path: str | None, pid: int) -> Any:
    """Write the pidfile at ``path``, unless it is there, and remove the one before; return Gunicorn's ``Pidfile``.

    :param own: the one before, or None.
    :param path: the absolute path, or None for no pidfile.
    :param pid: the master's.
    :raises GenerationError: it cannot be written there, or names another process that runs; nothing has changed.
    """
    new = None
    if path is not None:
        new = Pidfile(path)
        try:
            new.create(pid)
        except (OSError, RuntimeError) as error:
            raise GenerationError(f"the pidfile {path} cannot be written: {texts.reason(error)}") from error
        new.pid = pid  # Gunicorn leaves it out if the file has this pid already, and would not remove the file then
    if own is not None and own.fname != path:
        own.unlink()
    return new

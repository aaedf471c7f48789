"""Log files that are reopened (USR1, a reload): where that is impossible, logging continues in the old files.

Rules: all files or none. Gunicorn closes each file before it opens it again. A file that cannot be opened would leave a
handler that raises whenever something is logged, which would end the master's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from gunicorn.glogging import loggers


def guard(log: Any) -> None:
    """Have ``log.reopen_files()`` check first that all files can be opened; else it logs a warning and changes nothing.

    :param log: an object of Gunicorn's logger class.
    """
    reopen_files = log.reopen_files

    def guarded() -> None:
        try:
            for path in set(_paths(log)):
                with open(path, "a", encoding="utf-8"):
                    pass
        except OSError as error:
            log.warning("The log files cannot be reopened; logging continues in the old ones: %s", error)
        else:
            reopen_files()

    log.reopen_files = guarded


def _paths(log: Any) -> Iterator[str]:
    if log.cfg.capture_output and log.cfg.errorlog != "-":
        yield log.cfg.errorlog
    for logger in loggers():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream:
                yield handler.baseFilename

"""Log files that are opened anew (USR1, a reload): where that cannot be done, logging goes on as before.

Rules: all or none. Gunicorn closes each file before it opens it anew; one that cannot be opened then leaves a handler
that raises whenever something is logged, in the master's loop too, and the site would end for want of a log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from gunicorn.glogging import loggers


def guard(log: Any) -> None:
    """Have ``log.reopen_files()`` try first whether it can be done; else it says so, and changes nothing.

    :param log: an object of Gunicorn's logger class.
    """
    reopen_files = log.reopen_files

    def guarded() -> None:
        try:
            for path in set(_paths(log)):
                with open(path, "a", encoding="utf-8"):
                    pass
        except OSError as error:
            log.warning("The log files cannot be opened anew, what is logged goes on into the old ones: %s", error)
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

"""Gunicorn's log in a process of zdworker: files that are reopened (USR1, a reload), and texts fit for a reader.

Rules:

* No log is worth the site. Where a file cannot be reopened, or has no room for what is not written yet, a warning says
  so where that is possible, and everything else goes on.
* All files or none. Gunicorn closes each file before it opens it again. A file that cannot be opened would leave a
  handler that raises whenever something is logged, which would end the master's loop.
* What could not be written to a full disk is dropped before a file is closed. Python keeps it and tries it again with
  each close, and Gunicorn does not expect what that raises.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from gunicorn.glogging import loggers

from zdworker import texts

_NAMES = ("gunicorn.error", "gunicorn.access")


def guard(log: Any) -> None:
    """Make sure that ``log.reopen_files()`` raises nothing, and that what goes into the error log is printable.

    What cannot be written when the process ends is dropped, too.

    :param log: an object of Gunicorn's logger class.
    """
    reopen_files = log.reopen_files

    def guarded() -> None:
        try:
            for path in set(_paths(log)):
                _try_to_open(path, log.cfg)
            _drop_unwritten(log)
            reopen_files()
        except Exception as error:  # noqa: BLE001  # a user's logger class may raise anything
            log.warning("The log files cannot be reopened; logging continues in the old ones: %s", texts.reason(error))

    def end() -> None:
        with contextlib.suppress(Exception):
            _drop_unwritten(log)

    log.reopen_files = guarded
    atexit.register(end)  # Python exits with status 120 where standard output cannot be flushed at its end
    logging.getLogger("gunicorn.error").addFilter(Printable())


def before_setup(log: Any) -> None:
    """Make a logger ready for its ``setup()`` with another configuration.

    Gunicorn before 26.1 removes one of its handlers at most, and adds one for each of file and syslog: with each
    reload there would be one more. Newer ones remove all of them, as this does.

    :param log: an object of Gunicorn's logger class, which :func:`guard` knows.
    """
    _drop_unwritten(log)
    cfg = log.cfg
    configured = bool(cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json)
    for name in _NAMES:
        logger = logging.getLogger(name)
        if configured:
            logger.propagate = False  # as Gunicorn's constructor has it
        _remove_handlers(logger, every=configured)
    if configured:
        root = logging.getLogger()
        _remove_handlers(root, every=True)
        root.setLevel(logging.WARNING)  # Python's default


def _remove_handlers(logger: logging.Logger, *, every: bool) -> None:
    """Remove Gunicorn's own handlers; with ``every`` those that ``logconfig`` has brought, too.

    These cannot be told from others. But ``logging.config`` leaves a logger none that it had before, either.
    """
    for handler in list(logger.handlers):
        if every or getattr(handler, "_gunicorn", False):
            logger.removeHandler(handler)
            handler.close()


class Streams:
    """Standard output and error, as they were before ``capture_output`` has led them into a log file.

    Gunicorn does not lead them back when the setting is gone, or was part of a configuration that is given up. What the
    master's start has captured is not known any more, nor after an upgrade.
    """

    def __init__(self) -> None:
        self._kept: list[int] = []

    def before_setup(self, log: Any, cfg: Any) -> None:
        """Lead them back, and keep them if they are captured next.

        :param log: the logger.
        :param cfg: the configuration that it is to go by.
        :raises OSError: there is no descriptor left for that.
        """
        known = bool(self._kept) or not _captures(log.cfg)
        if self._kept and log.logfile is not None:
            log.logfile.close()
            log.logfile = None
        for number, kept in zip((1, 2), self._kept, strict=False):
            os.dup2(kept, number)
            os.close(kept)
        self._kept = [os.dup(1), os.dup(2)] if known and _captures(cfg) else []


@contextlib.contextmanager
def written_to_standard_error() -> Iterator[None]:
    """Have the handlers that are made in the body (``logconfig``) open no file, and write to standard error after it.

    That is for a trial beside a running site, whose log it must not write, own or rotate.
    """
    before = {handler for logger in _every_logger() for handler in logger.handlers}
    opening = getattr(logging.FileHandler, _OPEN)
    setattr(logging.FileHandler, _OPEN, _open_nothing)
    try:
        yield
    finally:
        setattr(logging.FileHandler, _OPEN, opening)
    for logger in _every_logger():
        for handler in [made for made in logger.handlers if made not in before]:
            if type(handler) is logging.StreamHandler:  # those of files are derived from it
                continue
            logger.removeHandler(handler)
            handler.close()
            shown: logging.Handler = logging.StreamHandler()
            shown.setLevel(handler.level)
            shown.setFormatter(handler.formatter)
            logger.addHandler(shown)


_OPEN = "_open"
"""The method of ``logging.FileHandler`` that opens its file, and that of each handler that is derived from it."""


def _open_nothing(handler: logging.FileHandler) -> Any:
    """Open a file that takes everything, if there is a directory for the handler's own one.

    :raises OSError: there is none.
    """
    os.stat(os.path.dirname(handler.baseFilename))
    return open(os.devnull, "w", encoding="utf-8")


def _every_logger() -> list[logging.Logger]:
    known = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]


def _captures(cfg: Any) -> bool:
    return bool(cfg.capture_output and cfg.errorlog != "-")


def _paths(log: Any) -> Iterator[str]:
    if _captures(log.cfg):
        yield log.cfg.errorlog
    for handler in _file_handlers():
        yield handler.baseFilename


def _try_to_open(path: str, cfg: Any) -> None:
    """Create a log file if there is none, and give it to the workers' user, as Gunicorn's ``glogging.py`` does it.

    :raises OSError: it cannot be opened.
    """
    is_new = not os.path.exists(path)
    with open(path, "a", encoding="utf-8") as file:
        if is_new:
            with contextlib.suppress(OSError):  # this process may not: then it is the workers' user itself
                os.fchown(file.fileno(), cfg.user, cfg.group)


def _file_handlers() -> Iterator[logging.FileHandler]:
    for logger in loggers():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream:
                yield handler


def _drop_unwritten(log: Any) -> None:
    """Write what the log files' streams hold; drop what cannot be written.

    :raises OSError: there is no descriptor left to do that with.
    """
    for handler in _file_handlers():
        handler.acquire()
        try:
            _flush(handler.stream)
        finally:
            handler.release()
    if log.cfg.capture_output:
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)


def _flush(stream: Any) -> None:
    try:
        stream.flush()
    except OSError:
        number = stream.fileno()
        inheritable = os.get_inheritable(number)
        kept = os.dup(number)
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), number, inheritable)
            stream.flush()
        finally:
            os.dup2(kept, number, inheritable)
            os.close(kept)


class Printable(logging.Filter):
    """Makes each record's text, and its traceback, fit for a reader; leaves those alone that are."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        with contextlib.suppress(Exception):  # arguments that do not fit their message: the handler says so
            text = record.getMessage()
            printable = texts.lines(text)
            if printable != text:
                record.msg, record.args = printable, None
            if record.exc_info and not record.exc_text:
                text = logging.Formatter().formatException(record.exc_info)
                printable = texts.lines(text)
                if printable != text:
                    record.exc_text = printable
        return True

"""Gunicorn's own logger, on full disks, through reloads with syslog, and with texts that no reader should get raw."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from zdworker import log_files, texts


def configuration(**settings: Any) -> Config:
    cfg = Config()
    for name, value in {"errorlog": "/dev/null", "accesslog": None, **settings}.items():
        cfg.set(name, value)
    return cfg


@pytest.fixture
def make_log() -> Iterator[Callable[..., Any]]:
    """Make Gunicorn's logger, guarded; its process-wide loggers are as before after the test."""
    loggers = [logging.getLogger(name) for name in ("gunicorn.error", "gunicorn.access")]
    before = [(logger.handlers[:], logger.filters[:], logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()

    def make(**settings: Any) -> Any:
        log = Logger(configuration(**settings))
        log_files.guard(log)
        return log

    yield make
    for logger, (handlers, filters, propagate, level) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.filters, logger.propagate = handlers, filters, propagate
        logger.setLevel(level)


def fill(path: Path) -> None:
    """Let this process write nothing to files that are as long as ``path`` or longer, as if the disk were full."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))


@pytest.fixture
def room() -> Iterator[Callable[[], None]]:
    """Make room again; a test that calls it or not leaves the limit as it was."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    logging.raiseExceptions = raising
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_rotation_on_a_full_disk(make_log: Callable[..., Any], room: Callable[[], None], tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    log = make_log(errorlog=str(path))
    log.error("before")
    fill(path)
    log.error("lost")
    path.rename(tmp_path / "error.log.1")
    log.reopen_files()
    room()
    log.error("after")
    assert "lost" not in (tmp_path / "error.log.1").read_text()
    assert path.read_text().rstrip().endswith("after")


def test_a_reload_on_a_full_disk(make_log: Callable[..., Any], room: Callable[[], None], tmp_path: Path) -> None:
    path, other = tmp_path / "error.log", tmp_path / "other.log"
    log = make_log(errorlog=str(path))
    log.error("before")
    fill(path)
    log.error("lost")
    log_files.before_setup(log)
    log.setup(configuration(errorlog=str(other)))
    room()
    log.error("after")
    assert other.read_text().rstrip().endswith("after")


def test_captured_output_on_a_full_disk(
    make_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Standard output and error are the log file then, and hold what was not written, too."""
    streams = [open("/dev/full", "w") for _ in range(2)]  # noqa: SIM115  # closed below
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    path = tmp_path / "error.log"
    log = make_log()
    log.cfg = configuration(errorlog=str(path), capture_output=True)
    for stream in streams:
        stream.write("lost")
    log.reopen_files()
    print("found", flush=True)
    assert path.read_text() == "found\n"
    for stream in (*streams, log.logfile):
        stream.close()


def test_files_that_cannot_be_opened_again(make_log: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "logs" / "error.log"
    path.parent.mkdir()
    log = make_log(errorlog=str(path))
    log.error("one")
    path.parent.rename(tmp_path / "moved")
    log.reopen_files()
    assert "cannot be reopened" in (tmp_path / "moved" / "error.log").read_text()


def test_a_reload_adds_no_syslog_handler(make_log: Callable[..., Any], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.setblocking(False)
        settings = {"syslog": True, "syslog_addr": f"unix://{tmp_path / 'log'}#dgram", "errorlog": "-"}
        log = make_log(**settings)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(6):
            log_files.before_setup(log)
            log.setup(configuration(**settings))
        log.error("once")
        assert b"once" in syslog.recv(4096)
        with pytest.raises(BlockingIOError):
            syslog.recv(4096)
        assert len(os.listdir("/proc/self/fd")) == before
        for name in ("gunicorn.error", "gunicorn.access"):
            kinds = [type(handler).__name__ for handler in logging.getLogger(name).handlers]
            assert kinds.count("SysLogHandler") == 1


def test_handlers_of_the_application_stay(make_log: Callable[..., Any]) -> None:
    log = make_log()
    own = logging.NullHandler()
    logging.getLogger("gunicorn.error").addHandler(own)
    log_files.before_setup(log)
    assert logging.getLogger("gunicorn.error").handlers == [own]


def test_the_log_is_printable(make_log: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    log = make_log(errorlog=str(path))
    try:
        raise RuntimeError("raised \udce9\x1b[2J")
    except RuntimeError:
        log.exception("logged %s", "\udce9\x1b[2J\0" + "x" * 1_000_000)
    text = path.read_text()
    assert r"logged \udce9\x1b[2J\x00x" in text
    assert r"RuntimeError: raised \udce9\x1b[2J" in text
    assert len(text) < 2 * texts.LINES_MAX


def test_what_is_printable_is_logged_as_it_is(make_log: Callable[..., Any]) -> None:
    """Template and arguments, which a formatter may use, and tracebacks, which it may make itself."""
    make_log()
    seen: list[logging.LogRecord] = []
    handler = logging.NullHandler()
    handler.handle = seen.append  # type: ignore[assignment,method-assign]  # a handler of one line
    logger = logging.getLogger("gunicorn.error")
    logger.handlers.pop().close()
    logger.addHandler(handler)
    try:
        raise RuntimeError("raised")
    except RuntimeError:
        logger.exception("%s of %d", "one", 3)
    logger.error("%d arguments that do not fit", "one")
    assert [(record.msg, record.args) for record in seen] == [
        ("%s of %d", ("one", 3)),
        ("%d arguments that do not fit", ("one",)),
    ]
    assert seen[0].exc_text is None

"""The thread that writes the master's log: order, bounds, what is done to the log itself, forks and the end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from zdworker import log_files
from zdworker.master import log_writer
from zdworker.master.log_writer import LogWriter


class Gate(logging.Handler):
    """A handler that takes lines only while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.opened = threading.Event()
        self.opened.set()
        self.entered = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        self.opened.wait(30)
        self.threads.add(threading.current_thread())
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[Any]:
    """Gunicorn's logger, guarded; its process-wide logger is as before after the test."""
    logger = logging.getLogger("gunicorn.error")
    before = logger.handlers[:], logger.filters[:], logger.propagate, logger.level
    logger.handlers.clear()
    cfg = Config()
    cfg.set("errorlog", "/dev/null")
    made = Logger(cfg)
    log_files.guard(made)
    yield made
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.filters, logger.propagate = before[:3]
    logger.setLevel(before[3])


@pytest.fixture
def gate(log: Any) -> Iterator[Gate]:
    made = Gate()
    logging.getLogger("gunicorn.error").addHandler(made)
    yield made
    made.opened.set()


@pytest.fixture
def writer(log: Any, gate: Gate) -> Iterator[LogWriter]:
    made = LogWriter(log)
    yield made
    gate.opened.set()
    made.end()


def shut(gate: Gate, log: Any) -> None:
    """Have the thread stuck in the handler, with the line "stuck"."""
    gate.opened.clear()
    gate.entered.clear()
    log.info("stuck")
    assert gate.entered.wait(10)


def wait_until(fact: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_lines_keep_their_order_and_a_thread_writes_them(log: Any, gate: Gate, writer: LogWriter) -> None:
    for number in range(100):
        log.info("line %d", number)
    assert writer.end()
    assert gate.lines == [f"line {number}" for number in range(100)]
    assert threading.main_thread() not in gate.threads


def test_a_log_that_takes_nothing_holds_up_the_thread_alone(log: Any, gate: Gate, writer: LogWriter) -> None:
    shut(gate, log)
    facts = [1]
    log.info("facts %s", facts)
    facts.append(2)
    assert gate.lines == []
    gate.opened.set()
    assert writer.end()
    assert gate.lines == ["stuck", "facts [1]"]


def test_what_finds_no_room_is_counted_in_its_place(log: Any, gate: Gate, writer: LogWriter) -> None:
    shut(gate, log)
    long = "x" * 10_000
    for number in range(1000):
        log.info("%d %s", number, long)
    gate.opened.set()
    wait_until(lambda: gate.lines[-1:] != [] and "Left out" in gate.lines[-1])
    log.info("after")
    assert writer.end()
    kept = [line for line in gate.lines if line.endswith(long)]
    assert [int(line.split()[0]) for line in kept] == list(range(len(kept)))
    assert sum(map(len, kept)) < log_writer.QUEUE_BYTES
    assert gate.lines[-2:] == [
        f"Left out here: {1000 - len(kept)} messages, because what reads the log has not kept up",
        "after",
    ]


def test_what_is_left_out_stands_before_the_next_line(log: Any, gate: Gate, writer: LogWriter) -> None:
    shut(gate, log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_writer, "QUEUE_BYTES", 0)
        log.info("lost")
    log.info("next")
    gate.opened.set()
    assert writer.end()
    assert gate.lines == ["stuck", "Left out here: 1 message, because what reads the log has not kept up", "next"]


def test_files_are_reopened_in_their_turn(log: Any, tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    cfg = Config()
    cfg.set("errorlog", str(path))
    log_files.before_setup(log)
    log.setup(cfg)
    gate = Gate()
    logging.getLogger("gunicorn.error").handlers.insert(0, gate)
    writer = LogWriter(log)
    shut(gate, log)
    log.info("before")
    path.rename(tmp_path / "error.log.1")
    log.reopen_files()
    log.close_on_exec()
    log.info("after")
    gate.opened.set()
    assert writer.end()
    assert "before" in (tmp_path / "error.log.1").read_text()
    assert path.read_text().rstrip().endswith("after")


def test_another_configuration_of_the_log_is_waited_for(log: Any, writer: LogWriter, tmp_path: Path) -> None:
    cfg = Config()
    cfg.set("errorlog", str(tmp_path / "error.log"))
    log.setup(cfg)
    log.info("there")
    assert writer.end()
    assert "there" in (tmp_path / "error.log").read_text()
    handlers = logging.getLogger("gunicorn.error").handlers
    assert sum(isinstance(handler, logging.FileHandler) for handler in handlers) == 1


def test_a_configuration_that_the_log_refuses_raises(log: Any, writer: LogWriter, tmp_path: Path) -> None:
    cfg = Config()
    cfg.set("logconfig_dict", {"version": 1, "handlers": {"x": {"class": "no.such.Handler"}}})
    with pytest.raises(RuntimeError):
        log.setup(cfg)


def test_another_configuration_of_a_log_that_takes_nothing_follows_later(
    log: Any, gate: Gate, writer: LogWriter, tmp_path: Path
) -> None:
    shut(gate, log)
    cfg = Config()
    cfg.set("errorlog", str(tmp_path / "error.log"))
    began = time.monotonic()
    log.setup(cfg)
    assert time.monotonic() - began < log_writer.SETUP_WAIT_S + 1
    log.info("after")
    gate.opened.set()
    assert writer.end()
    assert "after" in (tmp_path / "error.log").read_text()
    assert "takes no lines" in gate.lines[1]


def test_a_handler_that_raises_ends_nothing(
    log: Any, gate: Gate, writer: LogWriter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gate, "format", lambda record: 1 / 0)
        log.info("raises")
        log.reopen_files()
        wait_until(lambda: "ZeroDivisionError" in capsys.readouterr().err)
    log.info("goes on")
    assert writer.end()
    assert gate.lines == ["goes on"]


def test_arguments_that_do_not_fit_are_the_handlers_affair(log: Any, gate: Gate, writer: LogWriter) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)
        log.info("%d", [])
        log.info("after")
        assert writer.end()
    assert gate.lines == ["after"]


def test_the_end_of_a_log_that_takes_nothing(
    log: Any, gate: Gate, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "END_INTERVAL_S", 0.05)
    shut(gate, log)
    assert not writer.end()
    gate.opened.set()


def test_after_its_end_each_line_is_written_where_it_is_logged(log: Any, gate: Gate, writer: LogWriter) -> None:
    assert writer.end()
    log.info("direct")
    assert gate.lines == ["direct"]
    assert gate.threads == {threading.current_thread()}
    assert writer.end()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, for each process with threads
def test_a_forked_process_writes_its_lines_itself(log: Any, gate: Gate, writer: LogWriter, tmp_path: Path) -> None:
    """A fork while the thread writes, whose locks the child would have forever, waits for it only so long."""
    path = tmp_path / "child"
    shut(gate, log)
    log.info("of the parent alone")
    threading.Timer(0.05, gate.opened.set).start()
    pid = os.fork()
    if pid == 0:
        try:
            gate.lines.clear()
            log.info("in the child")
            log.reopen_files()
            writer.end()
            path.write_text("\n".join(gate.lines))
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.read_text() == "in the child"
    log.info("in the parent")
    assert writer.end()
    assert gate.lines == ["stuck", "of the parent alone", "in the parent"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, for each process with threads
def test_a_fork_does_not_wait_for_a_log_that_takes_nothing(log: Any, gate: Gate, writer: LogWriter) -> None:
    shut(gate, log)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert time.monotonic() - began < log_writer.FORK_WAIT_S + 1


def test_what_is_printed_comes_in_its_turn(
    log: Any, gate: Gate, writer: LogWriter, capfd: pytest.CaptureFixture[str]
) -> None:
    shut(gate, log)
    writer.write("printed é\n")
    assert capfd.readouterr().err == ""
    gate.opened.set()
    assert writer.end()
    writer.write("directly\n")
    assert capfd.readouterr().err == "printed é\ndirectly\n"


def test_a_logger_class_may_raise(log: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "info", lambda *_: 1 / 0)
    writer = LogWriter(log)
    log.info("lost")
    log.error("goes on")
    assert writer.end()
    assert "ZeroDivisionError" in gate.lines[0]
    assert gate.lines[1:] == ["goes on"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # see above
def test_two_threads_fork_at_a_time(log: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them waits in vain for the thread to be idle, which the other holds."""
    monkeypatch.setattr(log_writer, "FORK_WAIT_S", 0.01)
    main, begun, over = threading.current_thread(), threading.Event(), threading.Event()

    def pause() -> None:
        if threading.current_thread() is not main and not over.is_set():
            begun.set()
            over.wait(10)

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    os.register_at_fork(before=pause)  # and so it is called after what is registered next
    writer = LogWriter(log)
    thread = threading.Thread(target=fork)
    thread.start()
    assert begun.wait(10)
    fork()
    over.set()
    thread.join()
    log.info("goes on")
    assert writer.end()
    assert gate.lines == ["goes on"]

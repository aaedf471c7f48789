"""The master's log, written by a thread: a pipe, a terminal or a socket that is not read holds up that thread alone.

Rules:

* One queue keeps the order of everything that is written (the lines of the log, and what a fork server prints) and of
  everything that is done to the log itself (files are reopened, handlers are replaced).
* The queue is bounded. What finds no room is left out, and a line in its place says how much that was.
* A line is rendered where it is logged, unless its arguments cannot change until it is written.
* A logger class of the user's may raise whatever it likes: that is logged, and ends nothing.
* A process that is forked from the master has no such thread, and writes its lines itself.
* At the master's end what waits is written, as long as the log takes it. Where it takes nothing the master ends without
  it, and without Python's own exit, which would wait for the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from zdworker import boot, log_files, texts

QUEUE_BYTES = 4 * 1024 * 1024
"""Bytes that may wait to be written, about: some four thousand lines."""

LINE_BYTES = 1000
"""Bytes that a line takes in the queue beside its text."""

SETUP_WAIT_S = 0.5
"""Seconds that a reload waits for the log to go by a new configuration, whose errors it would then report."""

FORK_WAIT_S = 0.1
"""Seconds that a fork waits for the thread to be between two lines: the child has a copy of each lock that is held."""

END_INTERVAL_S, END_WAIT_S = 1.0, 10.0
"""Seconds within which a log has to take a line at the master's end, and seconds that all of them may take."""

_METHODS = ("critical", "error", "warning", "info", "debug", "exception", "log")

_NEVER_CHANGE = (str, bytes, int, float, type(None))


class LogWriter(logging.Filter):
    """Writes what the master logs. It is a filter that takes each line out of the log, and puts it into the queue.

    :param log: the master's logger, which :func:`zdworker.log_files.guard` knows.
    """

    def __init__(self, log: Any) -> None:
        super().__init__()
        self._logger = logging.getLogger("gunicorn.error")
        self._printable = log_files.Printable()
        self._items: queue.SimpleQueue[tuple[int, Callable[[], object]]] = queue.SimpleQueue()
        self._counts = threading.RLock()  # a signal handler may log, too
        self._waiting = 0
        self._left_out = 0
        self._written = 0
        self._writing = threading.Lock()
        self._fork = threading.local()  # two threads may fork at a time
        self._ending = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="zdworker-log", daemon=True)
        self._put_in_turn(log)
        for name in _METHODS:
            setattr(log, name, self._guarded(getattr(log, name)))
        self._logger.filters.insert(0, self)  # the others run in the thread, each once
        os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork)
        self._thread.start()

    def _put_in_turn(self, log: Any) -> None:
        """Have what is done to the log itself done by the thread, after the lines that were logged before."""
        setup, reopen_files, close_on_exec = log.setup, log.reopen_files, log.close_on_exec
        streams = log_files.Streams()

        def set_up(cfg: Any) -> None:
            log_files.before_setup(log)
            streams.before_setup(log, cfg)
            log.cfg = cfg  # which Gunicorn before 26.1 goes by, and does not set
            setup(cfg)

        log.setup = lambda cfg: self._wait_for(lambda: set_up(cfg))
        log.reopen_files = lambda: self.in_turn(reopen_files)
        log.close_on_exec = lambda: self.in_turn(close_on_exec)

    def _guarded(self, method: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any, **names: Any) -> None:
            try:
                method(*arguments, **names)
            except Exception:
                with contextlib.suppress(Exception):
                    self._logger.exception("The logger class has raised; everything else goes on")

        return guarded

    # -- what is written -----------------------------------------------------------------------------------------

    def filter(self, record: logging.LogRecord) -> bool:
        """Put a line into the queue; return whether it is to be written here and now."""
        if self._is_direct():
            return True
        self._printable.filter(record)  # which bounds its size
        _render(record)
        self._put(LINE_BYTES + _size(record), lambda: self._logger.handle(record))
        return False

    def write(self, text: str) -> None:
        """Write a text to the master's standard error."""
        data = text.encode()
        if self._is_direct():
            _write(data)
        else:
            self._put(len(data), lambda: _write(data))

    def _is_direct(self) -> bool:
        """Whether this process, or thread, has to write by itself."""
        return self._ending or os.getpid() != self._pid or threading.current_thread() is self._thread

    def _put(self, size: int, call: Callable[[], object]) -> None:
        with self._counts:
            if self._waiting + size > QUEUE_BYTES:
                self._left_out += 1
                return
            self._say_what_is_left_out()
            self._waiting += size
            self._items.put((size, call))

    def _say_what_is_left_out(self) -> None:
        if self._left_out:
            text = "Left out here: %s, because what reads the log has not kept up"
            number = texts.counted(self._left_out, "message")
            arguments = (self._logger.name, logging.WARNING, __file__, 0, text, (number,), None)
            self._left_out = 0
            record = self._logger.makeRecord(*arguments)
            self._items.put((0, lambda: self._logger.handle(record)))

    # -- what is done to the log ---------------------------------------------------------------------------------

    def in_turn(self, call: Callable[[], object]) -> None:
        """Have something done by the thread after all that it has been given before."""
        if self._is_direct():
            call()
        else:
            self._items.put((0, call))

    def _wait_for(self, call: Callable[[], None]) -> None:
        """Have something done in its turn, and wait for that, :data:`SETUP_WAIT_S` seconds at most.

        :raises BaseException: what it raises, if it is done by then.
        """
        if self._is_direct():
            call()
            return
        done = threading.Event()
        given_up = threading.Event()
        errors: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:
                errors.append(error)
                if given_up.is_set():
                    raise
            finally:
                done.set()

        self.in_turn(run)
        if not done.wait(SETUP_WAIT_S):
            given_up.set()
            self._logger.warning("The log takes no lines: it goes by the new configuration as soon as it does")
        elif errors:
            raise errors[0]

    def settle(self) -> bool:
        """Have everything written that waits; return False if the log has not taken it within :data:`SETUP_WAIT_S`
        seconds.
        """
        if self._is_direct():
            return True
        written = threading.Event()
        self._items.put((0, written.set))
        return written.wait(SETUP_WAIT_S)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        boot.leave_signals_to_main_thread()
        while True:
            size, call = self._items.get()
            if size < 0:
                return
            with self._writing:
                self._do(call)
            with self._counts:
                self._written += 1
                self._waiting -= size
                if self._items.empty():
                    self._say_what_is_left_out()

    @staticmethod
    def _do(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException:  # noqa: BLE001  # a handler of a user's class may raise anything, and the log goes on
            with contextlib.suppress(BaseException):
                traceback.print_exc()

    def _before_fork(self) -> None:
        if not self._is_direct():
            self._fork.holds = self._writing.acquire(timeout=FORK_WAIT_S)

    def _after_fork(self) -> None:
        if getattr(self._fork, "holds", False):
            self._fork.holds = False
            self._writing.release()

    # -- the end -------------------------------------------------------------------------------------------------

    def end(self) -> bool:
        """Write what waits; from then on each line is written where it is logged.

        :return: whether all is written; if not, the thread still waits for the log, and holds its locks.
        """
        if os.getpid() != self._pid:
            return True
        self._items.put((-1, lambda: None))
        until, written = time.monotonic() + END_WAIT_S, -1
        while self._thread.is_alive() and written != self._written and time.monotonic() < until:
            written = self._written
            self._thread.join(END_INTERVAL_S)
        self._ending = True
        self._logger.removeFilter(self)
        if self._thread.is_alive():
            return False
        while not self._items.empty():  # other threads have logged in the meantime
            self._do(self._items.get()[1])
        return True


def _render(record: logging.LogRecord) -> None:
    """Put the arguments into the text, unless they cannot change: a formatter may have a use for them."""
    arguments = record.args or ()
    values = arguments.values() if isinstance(arguments, Mapping) else arguments
    if not all(isinstance(value, _NEVER_CHANGE) for value in values):
        with contextlib.suppress(Exception):  # they do not fit the text: the handler says so
            record.msg, record.args = record.getMessage(), None


def _size(record: logging.LogRecord) -> int:
    with contextlib.suppress(Exception):
        return len(record.getMessage())
    return 0


def _write(data: bytes) -> None:
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]

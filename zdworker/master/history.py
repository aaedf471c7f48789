"""What has happened to the site, also before this master's start: what ``zdworker history`` shows.

Rules:

* What is an entry is decided in :mod:`zdworker.core.history`. This file keeps the entries in a file beside the control
  sockets, one JSON object a line, so that they outlive the master.
* A file belongs to a site: the start directory, the application and the addresses together, as ``zdworker list`` shows
  them. Two masters of one site at a time overwrite each other's file; the last one to write wins.
* All that touches the file is done in threads, one at a time. The master never waits for it, but for
  :data:`END_WAIT_S` seconds at its end, and goes on without it where the disk is full: the entries are in memory.
* The file is replaced whole (rename(2)), so a reader sees the old or the new one. It is readable by this user alone.
  One that cannot be read is a warning, and a new one is begun.
* With ``zd_control_socket = "none"`` there is no file: that says to leave the directory alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zdworker import boot, texts
from zdworker.core.events import Outcome
from zdworker.core.fleet import Fleet
from zdworker.core.history import ENTRIES_MAX, Death, End, Entry, History, Kind, Requester
from zdworker.errors import ControlError
from zdworker.ipc.messages import Upgraded
from zdworker.master.background import Call, call_in_background
from zdworker.master.control import own_directory
from zdworker.master.observers import Crash, Observer, Reload, utc
from zdworker.master.reactor import Reactor
from zdworker.master.reconfiguration import Site
from zdworker.master.status import serving_generation
from zdworker.plain import set_attributes
from zdworker.settings import Settings

FILE_MAX_BYTES = 256 * 1024
"""Bytes of a file that are read: several times what all entries can have."""

FILES_MAX = 50
"""Files of other sites that stay: a site that gets another port at each start leaves one behind each time."""

END_WAIT_S = 1.0
"""Seconds that the master's end waits for the file."""

_PATTERN = "history-*.jsonl*"  # with those that a master was killed over ("….jsonl.new")


class Recorder(Observer):
    """Notes what happens, and keeps it in the site's file.

    :param log: the master's logger.
    :param site: returns which site this is.
    :param label_of: returns the version of a generation's application, None if nothing tells.
    """

    def __init__(
        self, reactor: Reactor, log: Any, site: Callable[[], Site], label_of: Callable[[int], str | None]
    ) -> None:
        self.history = History(os.getpid())
        self._reactor = reactor
        self._log = log
        self._site = site
        self._label_of = label_of
        self._name: str | None = None
        self._has_file = False
        self._is_read = False
        self._changed = False
        self._warned = False
        self._call: Call | None = None

    def to_plain(self) -> list[dict[str, Any]]:
        """Return the entries as data for JSON, the oldest first."""
        return [entry.to_plain() for entry in self.history.entries]

    def to_state(self) -> dict[str, Any]:
        """Return the entries and the file's name, for :meth:`adopt` in another program of this process (an upgrade)."""
        return {
            "entries": self.history.entries,
            "facts": {name: getattr(self, name) for name in ("_name", "_has_file", "_is_read", "_warned")},
        }

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`to_state` has returned. The file is left alone before :meth:`upgrade_ended`."""
        self.history.adopt(state["entries"])
        set_attributes(self, state["facts"])

    @property
    def busy(self) -> bool:
        """Whether the file is being read or written."""
        return self._call is not None

    # -- what happens ----------------------------------------------------------------------------------------------

    def configuration_changed(self, settings: Settings) -> None:
        """Read the site's file once there may be one."""
        self._has_file = settings.control_socket != "none"
        if self._has_file and self._name is None:
            self._name = file_name(self._site())
            self._read_if_due()

    def reload_requested(self, kind: Kind, who: Requester) -> None:
        """Remember who has asked, for what follows."""
        self.history.requested(kind, who)

    def reload_started(self, reload: Reload) -> None:
        """Begin an entry."""
        self.history.started(reload.kind, reload.generation, utc(reload.started_at))
        self._save()

    def reload_finished(self, reload: Reload, fleet: Fleet) -> None:
        """End the entry; what has called the reload off is another one."""
        result = reload.result.value if reload.result is not None else ""
        error = texts.line(reload.error) if reload.error else None
        end = End(result, reload.duration_s(), error, reload.label or None, asdict(reload.cost))
        self.history.finished(reload.generation, end)
        if reload.result is Outcome.ROLLED_BACK:
            serving = serving_generation(fleet) or 0
            self.history.called_off(serving, self._label_of(serving), utc(time.time()))
        self._save()

    def upgrade_started(self, who: Requester, fleet: Fleet) -> None:
        """Begin an entry."""
        serving = serving_generation(fleet) or 0
        self.history.upgrade_started(who, serving, self._label_of(serving), utc(time.time()))
        self._save()

    def upgrade_ended(self, upgrade: Upgraded) -> None:
        """End the entry, and read the site's file if the program before has not done that."""
        self.history.upgrade_ended(End(upgrade.result, upgrade.duration_s, texts.line(upgrade.error) or None))
        self._read_if_due()  # first: what is written replaces the file
        self._save()

    def worker_crashed(self, crash: Crash) -> None:
        """Note the death."""
        death = Death(crash.generation, self._label_of(crash.generation), crash.slot, crash.pid, crash.how)
        self.history.crashed(death, utc(time.time()), time.monotonic())
        self._save()

    # -- the file ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Have what is not written yet written, if that is soon done."""
        if self._call is not None:
            self._call.join(END_WAIT_S)
            # What was read and not handled yet would be lost from a file that is written now.
            if self._changed and self._has_file and self._is_read and not self._call.is_alive():
                self._write()
                self._call.join(END_WAIT_S)

    def _in_background(self, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
        def ended(result: Any) -> None:
            self._call = None
            done(result)
            if self._changed and self._has_file and not self._warned:
                self._write()

        def undisturbed() -> Any:
            boot.leave_signals_to_main_thread()
            return function()

        self._call = call_in_background(self._reactor, undisturbed, ended)

    def _read_if_due(self) -> None:
        name = self._name
        if name is not None and not self._is_read and self._call is None:
            self._in_background(lambda: read(own_directory() / name), self._recall)

    def _recall(self, result: list[Entry] | BaseException) -> None:
        self._is_read = True
        if isinstance(result, ControlError):
            return  # that there can be no control socket either has been said
        if isinstance(result, BaseException):
            reason = texts.reason(result)
            self._log.warning("The history in %s cannot be read, and a new one is begun: %s", self._name, reason)
        else:
            self.history.recall(result)

    def _save(self) -> None:
        self._changed = True
        if self._has_file and self._call is None:
            self._write()

    def _write(self) -> None:
        self._changed = False
        before, site = self._name, self._site()
        # A master that ends has closed its addresses, and its file is that of the next start all the same.
        name = file_name(site) if site.bind or before is None else before
        data = "".join(json.dumps(texts.for_json(entry)) + "\n" for entry in self.to_plain()).encode()
        self._name = name

        def write() -> None:
            directory = own_directory()
            replace(directory / name, data)
            if before not in (None, name):  # a reload has changed the addresses
                (directory / str(before)).unlink(missing_ok=True)

        self._in_background(write, self._written)

    def _written(self, result: BaseException | None) -> None:
        if isinstance(result, ControlError):
            return
        if result is not None and not self._warned:
            self._log.warning(
                "The history cannot be written, and is kept in memory until that is possible: %s", texts.reason(result)
            )
        self._warned = result is not None


def file_name(site: Site) -> str:
    """Return the name of a site's file."""
    words = json.dumps([site.directory, site.application, site.bind])
    return f"history-{hashlib.sha256(words.encode()).hexdigest()[:16]}.jsonl"


def read(path: Path) -> list[Entry]:
    """Return the entries in a site's file, none where there is no file, and remove the oldest of too many other files.

    :raises OSError: it cannot be read.
    :raises ValueError: it is no such file; the text says why.
    """
    files = sorted(path.parent.glob(_PATTERN), key=_changed_at)
    for other in [file for file in files if file != path][:-FILES_MAX]:
        other.unlink(missing_ok=True)
    try:
        # A FIFO would be waited for, and a link might lead anywhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        data = file.read(FILE_MAX_BYTES + 1)
    if len(data) > FILE_MAX_BYTES:
        raise ValueError(f"it has more than {FILE_MAX_BYTES} bytes")
    return [Entry.from_plain(json.loads(line)) for line in data.splitlines()][-ENTRIES_MAX:]


def _changed_at(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def replace(path: Path, data: bytes) -> None:
    """Replace a file by one with ``data`` that only this user can read, whole.

    :raises OSError: that is impossible; the file stays as it was.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise

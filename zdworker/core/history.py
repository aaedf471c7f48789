"""What has happened to a site: its last reloads, rollbacks, crashes and upgrades, one entry for each.

Rules:

* Apart from the decisions: they do not depend on anything here. The moments come from the caller, as does the text of
  an error, in a bounded length.
* Of more than :data:`ENTRIES_MAX` entries the oldest ones are dropped.
* All requests that come before a load begins are the reasons for that one load, as the decisions have it.
* A crash that is like the newest entry is counted there: a worker that dies again and again does not push out what came
  before.
* An upgrade has no generation of its own: its entry has the one that serves. The master's next program goes on with
  the entries, and ends that one.
* A rollback that calls a reload off has no generation to load. It is an entry that is done at once.
* What an earlier master has begun and not ended is ``unfinished``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

ENTRIES_MAX = 50
"""Entries that are kept."""

REQUESTERS_MAX = 4
"""Different requesters that an entry names: a storm of requests leads to one load."""

UNFINISHED = "unfinished"
"""The result of what a master has not brought to its end."""


class Kind(str, Enum):
    """What an entry is about."""

    RELOAD = "reload"
    ROLLBACK = "rollback"
    CRASH = "crash"
    """A worker died that was ready."""
    UPGRADE = "upgrade"
    """The master's program was to be replaced, under its pid."""


@dataclass(frozen=True)
class Requester:
    """What has asked for a reload: a signal by its name, or a process with its user and its name; None is unknown."""

    signal: str | None = None
    uid: int | None = None
    pid: int | None = None
    command: str | None = None


@dataclass(frozen=True)
class End:
    """How a reload, rollback or upgrade has ended, after ``duration_s`` seconds, and what its drains have ``cost``: the
    fields of an :class:`Entry` that say so.
    """

    result: str
    duration_s: float
    error: str | None = None
    label: str | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Death:
    """The death of a ready worker: its generation with its label, slot and pid, and how it died."""

    generation: int
    label: str | None
    slot: int
    pid: int
    how: str


@dataclass
class Entry:
    """One entry. ``at`` is when it began, in UTC by ISO 8601, ``master`` the pid of the master then.

    ``result`` is None while it is under way, and for a crash. ``times`` is how many crashes it stands for, and
    ``duration_s`` the seconds from the first to the last of them. ``began`` is by the caller's monotonic clock, None
    for an entry of an earlier master. ``cut_paths`` names some of the requests that were cut.
    """

    kind: str
    at: str
    master: int
    generation: int
    by: list[Requester] = field(default_factory=list)
    label: str | None = None
    result: str | None = None
    duration_s: float | None = None
    error: str | None = None
    slot: int | None = None
    pid: int | None = None
    times: int = 1
    handed_over: int = 0
    told_to_close: int = 0
    cut_requests: int = 0
    closed_websockets: int = 0
    cut_paths: list[str] = field(default_factory=list)
    began: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        plain = dataclasses.asdict(self)
        del plain["began"]
        return plain

    @classmethod
    def from_plain(cls, plain: object) -> Entry:
        """Return the entry in data from :meth:`to_plain`, of this version of zdworker or of another one.

        :raises ValueError: it is none.
        """
        values = _known(plain, _ENTRY)
        by = values.get("by", [])
        values["by"] = [Requester(**_known(one, _REQUESTER)) for one in by[:REQUESTERS_MAX]]
        if not all(isinstance(path, str) for path in values.get("cut_paths", [])):
            raise ValueError("cut_paths has something that is no text")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"an entry lacks a field: {error}") from None


_TEXT, _NUMBER, _NOTHING = (str,), (int,), (type(None),)
_REQUESTER: Mapping[str, tuple[type, ...]] = {
    "signal": _TEXT + _NOTHING,
    "uid": _NUMBER + _NOTHING,
    "pid": _NUMBER + _NOTHING,
    "command": _TEXT + _NOTHING,
}
_ENTRY: Mapping[str, tuple[type, ...]] = {
    "kind": _TEXT,
    "at": _TEXT,
    "master": _NUMBER,
    "generation": _NUMBER,
    "by": (list,),
    "label": _TEXT + _NOTHING,
    "result": _TEXT + _NOTHING,
    "duration_s": (int, float, type(None)),
    "error": _TEXT + _NOTHING,
    "slot": _NUMBER + _NOTHING,
    "pid": _NUMBER + _NOTHING,
    "times": _NUMBER,
    "handed_over": _NUMBER,
    "told_to_close": _NUMBER,
    "cut_requests": _NUMBER,
    "closed_websockets": _NUMBER,
    "cut_paths": (list,),
}
"""The types that each field may have."""


def _known(plain: object, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Return the fields that are known.

    :raises ValueError: one has a value of another type, or these are no fields at all.
    """
    if not isinstance(plain, dict):
        raise ValueError(f"no JSON object but {type(plain).__name__}")
    found = {name: plain[name] for name in types if name in plain}
    for name, value in found.items():
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise ValueError(f"{name} is {type(value).__name__}")
    return found


class History:
    """The entries, in the order in which they have begun.

    :param master: the pid of this master.
    """

    def __init__(self, master: int) -> None:
        self.entries: list[Entry] = []
        self._master = master
        self._asking: dict[Kind, list[Requester]] = {Kind.RELOAD: [], Kind.ROLLBACK: []}
        self._under_way: dict[int, Entry] = {}

    def recall(self, earlier: list[Entry]) -> None:
        """Put the entries of earlier masters before those of this one."""
        for entry in earlier:
            if entry.result is None and entry.kind != Kind.CRASH.value:
                entry.result = UNFINISHED
        self.entries[:0] = earlier
        self._drop_oldest()

    def requested(self, kind: Kind, who: Requester) -> None:
        """Note a request; a rollback also calls off the reload that was to come next."""
        if kind is Kind.ROLLBACK:
            self._asking[Kind.RELOAD] = []
        asking = self._asking[kind]
        if who not in asking and len(asking) < REQUESTERS_MAX:
            asking.append(who)

    def started(self, kind: Kind, generation: int, at: str) -> None:
        """Note that a reload or a rollback has begun."""
        self._under_way[generation] = self._add(Entry(kind.value, at, self._master, generation, self._requesters(kind)))

    def finished(self, generation: int, end: End) -> None:
        """Note the end of the reload or rollback to ``generation``."""
        entry = self._under_way.pop(generation, None)
        if entry is None:
            return
        entry.result, entry.duration_s, entry.error, entry.label = end.result, end.duration_s, end.error, end.label
        for name, value in end.cost.items():
            setattr(entry, name, value)

    def called_off(self, serving: int, label: str | None, at: str) -> None:
        """Note a rollback that was done by calling a reload off, and which generation serves."""
        by = self._requesters(Kind.ROLLBACK)
        self._add(Entry(Kind.ROLLBACK.value, at, self._master, serving, by, label, "done", 0.0))

    def crashed(self, death: Death, at: str, now: float) -> None:
        """Note that a worker died that was ready; ``now`` is monotonic seconds."""
        newest = self.entries[-1] if self.entries else None
        alike = newest is not None and newest.kind == Kind.CRASH.value and newest.began is not None
        if newest is None or not alike or (newest.generation, newest.error) != (death.generation, death.how):
            newest = self._add(Entry(Kind.CRASH.value, at, self._master, death.generation, times=0, began=now))
        newest.label, newest.error, newest.slot, newest.pid = death.label, death.how, death.slot, death.pid
        newest.times += 1
        newest.duration_s = round(now - (newest.began or now), 3)

    def upgrade_started(self, who: Requester, serving: int, label: str | None, at: str) -> None:
        """Note that the master's program is about to be replaced, while this generation serves."""
        self._add(Entry(Kind.UPGRADE.value, at, self._master, serving, [who], label))

    def upgrade_ended(self, end: End) -> None:
        """Note the end of the newest upgrade that is under way; the generation keeps its label."""
        for entry in reversed(self.entries):
            if entry.kind == Kind.UPGRADE.value and entry.result is None:
                entry.result, entry.duration_s, entry.error = end.result, end.duration_s, end.error
                return

    def adopt(self, entries: list[Entry]) -> None:
        """Go on with the entries of an earlier program of this master."""
        self.entries = entries
        going_on = (e for e in entries if e.result is None and e.kind in (Kind.RELOAD.value, Kind.ROLLBACK.value))
        self._under_way = {entry.generation: entry for entry in going_on}

    def _requesters(self, kind: Kind) -> list[Requester]:
        found, self._asking[kind] = self._asking[kind], []
        return found

    def _add(self, entry: Entry) -> Entry:
        self.entries.append(entry)
        self._drop_oldest()
        return entry

    def _drop_oldest(self) -> None:
        del self.entries[:-ENTRIES_MAX]

"""The ``zd_`` settings: their names and allowed values.

Rules:

* ``SPECS`` is the one list of settings, from which checks, error lines and documentation are made. Defaults are in
  ``Settings``.
* Every ``Settings`` object is valid: ``read`` checks values with the name that the user wrote, the constructor checks
  all of them.
* The error for a bad setting is one line that names the setting, its source and the allowed values.
* The functions are pure. Only the standard library and ``zdworker.errors`` are imported, because the master, the fork
  server and every worker import this file.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from zdworker.errors import SettingError

PREFIX = "zd_"
GENERATION_VARIABLE = "ZD_GENERATION"
"""The environment variable with the number of the generation that a process belongs to; 0 in the master."""

ENVIRONMENT_PREFIX = "ZD_"

LABEL_MAX = 100
"""Characters that a version's label may have: it stands in the middle of lines."""


@dataclass(frozen=True)
class Hook:
    """A server hook in Gunicorn's style: its arguments, and when it is called, for the documentation."""

    arguments: str
    meaning: str


HOOKS: Mapping[str, Hook] = {
    "zd_worker_ready": Hook("(server, worker)", "when a worker accepts"),
    "zd_reload_started": Hook("(server)", "when a reload begins"),
    "zd_canary_ready": Hook(
        "(server, worker)",
        "when the first new worker serves beside all old ones (`zd_canary_seconds`, `zdworker reload --hold`)",
    ),
    "zd_judge": Hook(
        "(server, report)",
        "about twice a second while the new code of a reload is watched; a text that it returns is a reason to give "
        "that code up. `report` is a dictionary with `generation` and `before`, `canary` (a single new worker serves), "
        "`held`, what both have answered since the first new worker was ready (`answers`, `failed`, `answers_before`, "
        "`failed_before`), and their `figures` and `figures_before` as `status --json` has them",
    ),
    "zd_reload_finished": Hook(
        "(server, report)",
        "when it has ended; `report` is a dictionary with `result` (`done`, `failed`, `superseded`, `rolled_back`), "
        "`generation`, `started_at`, `duration_s`, `error`, `traceback`, `label`, `rollback`, `judgement`, and what "
        "it has cost: `handed_over`, `told_to_close`, `cut_requests`, `closed_websockets` and `cut_paths`",
    ),
}
"""The hooks, which can be set in the configuration file only."""


@dataclass(frozen=True)
class Settings:
    """The settings of one generation, valid by construction.

    ``max_surge``, ``max_unavailable``: processes, or a percentage of ``workers`` such as ``"25%"``.
    ``boot_timeout``, ``min_ready_seconds``, ``canary_seconds``, ``websocket_drain``, ``rollback_window``,
    ``shutdown_delay``: seconds.
    ``health_path``: a path, or empty. ``warmup``: paths or URLs.
    ``max_rss``: bytes, or None. ``on_crash``: ``"respawn"`` or ``"exit"``. ``preload``: ``"auto"`` or ``"never"``.
    ``control_socket``: a path, ``"none"``, or empty for the user's runtime directory. ``hand_over``: yes or no.
    ``version``: the label of the application, or empty. ``max_error_rate``: a percentage, or None. ``count_answers``:
    yes or no.

    :raises SettingError: a value is bad.
    """

    max_surge: int | str = 1
    max_unavailable: int | str = 0
    boot_timeout: float = 60.0
    min_ready_seconds: float = 0.0
    warmup: tuple[str, ...] = ()
    websocket_drain: float = 5.0
    max_rss: int | None = None
    on_crash: str = "respawn"
    health_path: str = ""
    shutdown_delay: float = 0.0
    rollback_window: float = 0.0
    preload: str = "auto"
    control_socket: str = ""
    hand_over: bool = True
    version: str = ""
    canary_seconds: float = 0.0
    max_error_rate: float | None = None
    count_answers: bool = False

    def __post_init__(self) -> None:
        for name, spec in SPECS.items():
            attribute = name.removeprefix(PREFIX)
            # The class is frozen; only here the normal form ("2" -> 2, 5 -> 5.0) replaces the value that was given.
            object.__setattr__(self, attribute, spec.checked(getattr(self, attribute), name))
        if _is_zero(self.max_surge) and _is_zero(self.max_unavailable):
            raise SettingError(
                "zd_max_surge and zd_max_unavailable are both 0, so no worker could ever be replaced: "
                "one of them must be at least 1 (or a percentage above 0%)"
            )

        for url in self.warmup:
            if urlsplit(url).path == self.health_path:
                raise SettingError(
                    f"zd_warmup names {url}, which is zd_health_path: zdworker answers that itself, so nothing of the "
                    "application would be tried; name a path of its own"
                )

    def to_plain(self) -> dict[str, object]:
        """Return all settings as data for JSON, by name without the prefix."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Settings:
        """Return the settings in data from ``to_plain``.

        The other process may run another version of zdworker: unknown names are ignored, and missing ones get their
        defaults.

        :raises SettingError: a value is bad.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in plain.items() if name in known}
        return cls(**values)


@dataclass(frozen=True)
class Spec:
    """The allowed values of a setting.

    ``allowed`` describes the values in error lines and the documentation, ``parse`` returns the normal form of a value
    or raises ``ValueError``. What a setting means stands in ``docs/reference_tables.py``.
    """

    allowed: str
    parse: Callable[[object], object]

    def checked(self, value: object, label: str) -> object:
        """Return the value in its normal form.

        :param label: the setting's name as the user wrote it, for the error.
        :raises SettingError: the value is not allowed.
        """
        try:
            return self.parse(value)
        except (ValueError, OverflowError):
            shown = " ".join(reprlib.repr(value).split())
            raise SettingError(f"{label} = {shown} is not valid: it must be {self.allowed}") from None


def read(namespace: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Return the settings in a configuration file and an environment, which takes precedence.

    Unknown ``ZD_`` variables are ignored (see :func:`unknown_environment`).

    :param namespace: the globals of ``gunicorn.conf.py``; names without the prefix are ignored.
    :raises SettingError: a setting is unknown or has a bad value, or a hook is bad.
    """
    hooks(namespace)
    values = {name: _checked(name, label, value) for name, label, value in _given(namespace, environ)}
    return Settings.from_plain({name.removeprefix(PREFIX): value for name, value in values.items()})


def problems(namespace: Mapping[str, object], environ: Mapping[str, str]) -> list[str]:
    """Return all reasons for which :func:`read` would refuse these settings, where that raises the first."""
    found = []
    for name, label, value in _given(namespace, environ):
        try:
            _checked(name, label, value)
        except SettingError as error:
            found.append(str(error))
    try:
        hooks(namespace)
        if not found:
            read(namespace, environ)
    except SettingError as error:
        found.append(str(error))
    return found


def _given(namespace: Mapping[str, object], environ: Mapping[str, str]) -> Iterator[tuple[str, str, object]]:
    """Yield the name, the label for errors and the value of each setting, those of the environment last."""
    for name in sorted(name for name in namespace if name.startswith(PREFIX) and name not in HOOKS):
        yield name, name, namespace[name]
    for name in sorted(SPECS):
        if name.upper() in environ:
            yield name, f"{name.upper()} (environment)", environ[name.upper()]


def _checked(name: str, label: str, value: object) -> object:
    _refuse_unless_known(name, label)
    return SPECS[name].checked(_called(name, value), label)


def hooks(namespace: Mapping[str, object]) -> dict[str, Callable[..., object]]:
    """Return the ``zd_`` hooks that a configuration file defines, by name.

    :raises SettingError: one is not a function, or takes other arguments.
    """
    found: dict[str, Callable[..., object]] = {}
    for name, known in HOOKS.items():
        hook = namespace.get(name)
        if hook is None:
            continue
        wanted = f"{name} must be a function of {known.arguments}"
        if not callable(hook):
            raise SettingError(f"{wanted}, not {reprlib.repr(hook)}")
        try:
            inspect.signature(hook).bind(*known.arguments.strip("()").split(", "))
        except TypeError as error:
            raise SettingError(f"{wanted}: {error}") from None
        except ValueError:
            pass  # a function in C, whose arguments cannot be known
        found[name] = hook
    return found


def unknown_environment(environ: Mapping[str, str]) -> list[str]:
    """Return the sorted ``ZD_`` variables that are not settings: another program's, or misspelt ones."""
    known = {GENERATION_VARIABLE, *(name.upper() for name in SPECS)}
    return sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX) and name not in known)


def _refuse_unless_known(name: str, label: str) -> None:
    if name not in SPECS:
        near = nearest(name, [*SPECS, *HOOKS])
        meant = f" (did you mean {near}?)" if near else ""
        raise SettingError(f"{label} is not a setting of zdworker{meant}; available: {', '.join([*SPECS, *HOOKS])}")


def nearest(name: str, known: Iterable[str], likeness: float = 0.75) -> str:
    """Return the name that was probably meant, "" if none is near.

    :param likeness: how alike both have to be, from 0 to 1 (:func:`difflib.get_close_matches`).
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1, likeness)), "")


def _share(value: object) -> int | str:
    """Return a number of processes, or a percentage up to ``100%``, which is a whole second fleet."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"([0-9]{1,9})(%?)", value.strip(), re.ASCII) if isinstance(value, str) else None
    if match is None:
        raise ValueError
    amount = int(match[1])
    if not match[2]:
        return amount
    if amount > 100:
        raise ValueError
    return f"{amount}%"


def _seconds(value: object) -> float:
    """Return finite seconds from 0 up; a deadline must come."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError
    return seconds


def _positive_seconds(value: object) -> float:
    """Return seconds above 0."""
    seconds = _seconds(value)
    if seconds == 0:
        raise ValueError
    return seconds


def _one_of(*words: str) -> Callable[[object], str]:
    """Return a function that returns its argument, if that is one of ``words``."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return parse


def _yes_or_no(value: object) -> bool:
    """Return a truth value, given as such or, as in the environment, in words."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if not isinstance(value, str) or value.strip().lower() not in words:
        raise ValueError
    return words[value.strip().lower()]


def _called(name: str, value: object) -> object:
    """Return what a function in the place of ``zd_version`` returns; any other value as it is.

    :raises SettingError: the function raises.
    """
    if name != "zd_version" or not callable(value):
        return value
    try:
        return value()
    except Exception as error:
        raise SettingError(f"zd_version cannot be called: {type(error).__name__}: {error}") from error


def _label(value: object) -> str:
    """Return a label: one line of printable characters, or "" for none."""
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LABEL_MAX or not value.isprintable():
        raise ValueError
    return value.strip()


def _paths(value: object) -> tuple[str, ...]:
    """Return paths or URLs, given as a list or, as in the environment, as one text with spaces or commas in between."""
    if value is None:
        return ()
    items = re.split(r"[\s,]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise ValueError
    paths = tuple(item for item in items if item != "")
    if not all(isinstance(path, str) and re.fullmatch(r"(https?://[^\s/]+)?/[^\s]*", path, re.ASCII) for path in paths):
        raise ValueError
    return paths


def _path(value: object) -> str:
    """Return one path without a query, or "" for none."""
    if value in (None, ""):
        return ""
    if not isinstance(value, str) or not re.fullmatch(r"/[^\s?#]*", value, re.ASCII):
        raise ValueError
    return value


def _bytes(value: object) -> int | None:
    """Return a number of bytes above 0, or None; ``"512M"`` is 512 times 1024 times 1024."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)B?", str(value).strip().upper(), re.ASCII)
    if match is None or isinstance(value, (bool, float)) or int(match[1]) == 0:
        raise ValueError
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def _percentage(value: object) -> float | None:
    """Return a percentage from 0 to below 100, given as a number or as ``"5%"``; None for none."""
    if value in (None, ""):
        return None
    if isinstance(value, str):
        value = value.strip().removesuffix("%")
    percentage = _seconds(value)  # which are finite and not negative, too
    if percentage >= 100:
        raise ValueError
    return percentage


def _socket_path(value: object) -> str:
    """Return a path that fits a socket's address (unix(7)), "none" or ""."""
    if value in (None, ""):
        return ""
    if not isinstance(value, str) or (value != "none" and not value.startswith("/")) or len(value.encode()) > 100:
        raise ValueError
    return value


def amount(share: int | str) -> tuple[int, bool]:
    """Return the number in ``max_surge`` or ``max_unavailable``, and whether it is a percentage."""
    return (share, False) if isinstance(share, int) else (int(share.rstrip("%")), True)


def _is_zero(share: int | str) -> bool:
    return amount(share)[0] == 0


_SHARE = 'a whole number from 0 up, or a percentage from "0%" to "100%"'
_SECONDS = "a number of seconds from 0 up"

SPECS: Mapping[str, Spec] = {
    "zd_max_surge": Spec(_SHARE, _share),
    "zd_max_unavailable": Spec(_SHARE, _share),
    "zd_boot_timeout": Spec("a number of seconds above 0", _positive_seconds),
    "zd_min_ready_seconds": Spec(_SECONDS, _seconds),
    "zd_warmup": Spec('paths such as ["/"], or URLs such as ["http://example.org/"]', _paths),
    "zd_websocket_drain": Spec(_SECONDS, _seconds),
    "zd_max_rss": Spec('a number of bytes above 0, such as "512M" or 536870912, or None', _bytes),
    "zd_on_crash": Spec('"respawn" or "exit"', _one_of("respawn", "exit")),
    "zd_health_path": Spec('a path such as "/health", or None', _path),
    "zd_shutdown_delay": Spec(_SECONDS, _seconds),
    "zd_rollback_window": Spec(_SECONDS, _seconds),
    "zd_preload": Spec('"auto" or "never" (--preload or preload_app = True: always)', _one_of("auto", "never")),
    "zd_control_socket": Spec('an absolute path of at most 100 bytes, "none", or "" for the default', _socket_path),
    "zd_version": Spec(
        f"a text of at most {LABEL_MAX} printable characters, or a function without arguments that returns one", _label
    ),
    "zd_hand_over": Spec('True or False (in the environment "true" or "false")', _yes_or_no),
    "zd_canary_seconds": Spec(_SECONDS, _seconds),
    "zd_max_error_rate": Spec('a percentage from 0 to below 100, such as 5 or "5%", or None', _percentage),
    "zd_count_answers": Spec('True or False (in the environment "true" or "false")', _yes_or_no),
}

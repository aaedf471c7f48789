"""The systemd unit that starts the site: what of it would make a stop, a start or a reload go wrong.

Rules:

* A unit is asked of systemd (``systemctl show``), which knows its defaults and drop-ins. Where no systemd runs, in an
  image that is built say, its file is read (systemd.unit(5)).
* Without a name the unit is looked for that starts Gunicorn in the present directory. It is no error if none is found:
  the result says that the unit was not checked.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zdworker.check.findings import Findings
from zdworker.core.steps import KILL_MARGIN_S
from zdworker.settings import Settings

LIMIT_S = 30.0
"""Seconds that the looks at the surroundings may take in all."""

ANSWER_S = 5.0
"""Seconds that systemd has to answer."""

SPARE_S = 4.0
"""Seconds that are proposed beside those that are needed."""

PROPERTIES = {
    "Type": "simple",
    "NotifyAccess": "none",
    "KillMode": "control-group",
    "TimeoutStopSec": "90",
    "WorkingDirectory": "",
    "Environment": "",
    "ExecStart": "",
}
"""What is looked at, with systemd's own defaults (systemd.service(5), systemd.kill(5), systemd.exec(5))."""

NOTIFYING = ("notify", "notify-reload")
"""The types of services that systemd waits for until they say that they are ready."""

SHELLS = ("bash", "dash", "sh", "zsh")

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Unit:
    """A service: its name, and :data:`PROPERTIES` by their names in a file."""

    name: str
    properties: dict[str, str]

    @property
    def notifies(self) -> bool:
        """Whether systemd listens to the service."""
        return self.properties["Type"] in NOTIFYING or self.properties["NotifyAccess"] in ("main", "exec", "all")

    @property
    def environment(self) -> dict[str, str]:
        """The variables that it sets itself."""
        try:
            words = shlex.split(self.properties["Environment"])
        except ValueError:
            return {}
        return dict(word.split("=", 1) for word in words if "=" in word)


def check(name: str, cfg: Any, settings: Settings, findings: Findings) -> None:
    """Check a unit against the configuration.

    :param name: the unit's name or file, "" to look for it.
    :param cfg: Gunicorn's configuration.
    """
    unit, why_not = _named(name) if name else _found(os.getcwd())
    if unit is None:
        (findings.error if name else findings.skipped)(why_not)
        return
    found = list(problems(unit, float(cfg.graceful_timeout), settings))
    for problem in found:
        (findings.error if problem.fatal else findings.warning)(f"{unit.name}: {problem.text}")
    if not found:
        known = {key: unit.properties[key] for key in ("Type", "KillMode", "TimeoutStopSec", "WorkingDirectory")}
        findings.ok(f"{unit.name}: {', '.join(f'{key}={value}' for key, value in known.items())}")


class Problem(NamedTuple):
    """What is wrong with a unit, and what to do; ``fatal`` if a start or a stop would go wrong."""

    fatal: bool
    text: str


def problems(unit: Unit, graceful_timeout: float, settings: Settings) -> Iterator[Problem]:
    """Yield what is wrong with a unit.

    :param graceful_timeout: Gunicorn's setting, seconds.
    """
    yield from _of_notifications(unit)
    yield from _of_kill_mode(unit.properties["KillMode"])
    yield from _of_stop_timeout(unit, graceful_timeout + settings.shutdown_delay + KILL_MARGIN_S)
    yield from _of_directory(unit)


def _of_notifications(unit: Unit) -> Iterator[Problem]:
    properties = unit.properties
    if properties["Type"] not in NOTIFYING:
        text = (
            f"with Type={properties['Type']} a start is over before a worker accepts, and systemd learns nothing of "
            "reloads: set Type=notify"
        )
        yield Problem(fatal=False, text=text)
        return
    command = properties["ExecStart"].lstrip("@-:+!")
    is_shell = os.path.basename(command.split(" ")[0]) in SHELLS
    if is_shell and not re.search(r"\bexec\b", command) and properties["NotifyAccess"] not in ("all", "exec"):
        text = (
            "ExecStart is a shell, from whose children systemd takes no notification, so that each start would time "
            "out: write 'exec gunicorn …' in it, or start gunicorn itself"
        )
        yield Problem(fatal=True, text=text)


def _of_kill_mode(kill_mode: str) -> Iterator[Problem]:
    why = {
        "mixed": "",
        "none": "has a stop end nothing",
        "process": "leaves behind what the master could not end",
    }.get(kill_mode, "sends TERM to the application's own processes, too, while requests may still need them")
    if why:
        yield Problem(fatal=kill_mode == "none", text=f"KillMode={kill_mode} {why}: set KillMode=mixed")


def _of_stop_timeout(unit: Unit, needed_s: float) -> Iterator[Problem]:
    # A master that systemd listens to asks for more time while it has a reason.
    stop_s = seconds(unit.properties["TimeoutStopSec"])
    if stop_s is not None and stop_s < needed_s and not unit.notifies:
        text = (
            f"systemd kills the site {stop_s:g} s after a stop, and requests may take {needed_s:g} s "
            f"(graceful_timeout, zd_shutdown_delay and {KILL_MARGIN_S:g} s): set "
            f"TimeoutStopSec={needed_s + SPARE_S:g}, or Type=notify, with which the master asks for more time"
        )
        yield Problem(fatal=True, text=text)


def _of_directory(unit: Unit) -> Iterator[Problem]:
    directory = unit.properties["WorkingDirectory"].lstrip("-")
    if not directory:
        text = "there is no WorkingDirectory, so it starts in /: set it to where the application is"
        yield Problem(fatal=False, text=text)
        return
    if not directory.startswith("/") or "%" in directory:
        return  # only systemd knows where that is
    here, physical, named = os.getcwd(), os.path.realpath(directory), unit.environment.get("PWD", "")
    if physical != os.path.realpath(here):
        yield Problem(fatal=False, text=f"it starts in {directory}, and this check has run in {here}: run it there")
    if named and os.path.realpath(named) != physical:
        text = f"Environment=PWD={named} is not the WorkingDirectory, {directory}: set it to that"
        yield Problem(fatal=True, text=text)
    elif not named and physical != directory.rstrip("/"):
        text = (
            f"PWD is not set, so the master cannot know that {directory} is a link, and a reload would not follow it: "
            f"add Environment=PWD={directory}"
        )
        yield Problem(fatal=False, text=text)


def seconds(text: str) -> float | None:
    """Return the seconds of a timeout (systemd.time(7)); None if it is infinite, as 0 is, or nothing that is known."""
    parts = re.findall(r"([0-9.]+)\s*([a-z]*)", text)
    if not parts or any(unit not in _SECONDS for _, unit in parts):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts) or None


# -- where the unit is ---------------------------------------------------------------------------------------------


def _directories() -> list[Path]:
    """Return where a site's own units are, the user's first (systemd.unit(5))."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [Path(home) / "systemd" / "user", Path("/etc/systemd/system"), Path("/run/systemd/system")]


def _named(name: str) -> tuple[Unit | None, str]:
    """Return the unit that was named, or why there is none."""
    if "/" in name or os.path.isfile(name):
        path = Path(name)
        return (read(path), "") if path.is_file() else (None, f"there is no unit file {name}")
    full = name if "." in name else f"{name}.service"
    for scope in ([], ["--user"]):
        unit = _asked(full, scope)
        if unit is not None:
            return unit, ""
    for directory in _directories():
        if (directory / full).is_file():
            return read(directory / full), ""
    return None, f"there is no unit {full}: name another one, or its file"


def _found(directory: str) -> tuple[Unit | None, str]:
    """Return the one unit that starts Gunicorn in a directory, or why there is none."""
    here = os.path.realpath(directory)
    found: dict[str, Path] = {}
    for place in _directories():
        for path in sorted(place.glob("*.service")):
            properties = read(path).properties
            where = properties["WorkingDirectory"].lstrip("-")
            if where and os.path.realpath(where) == here and "gunicorn" in properties["ExecStart"]:
                found.setdefault(path.name, path)
    if not found:
        return None, "no unit starts Gunicorn in this directory: name one with --unit, if there is one"
    if len(found) > 1:
        return None, f"several units start Gunicorn in this directory ({', '.join(found)}): name one with --unit"
    [(name, path)] = found.items()
    scope = ["--user"] if path.parent == _directories()[0] else []
    return _asked(name, scope) or read(path), ""


def _asked(name: str, scope: list[str]) -> Unit | None:
    """Return a unit as systemd knows it; None where no systemd runs, or where it does not know the unit."""
    names = [{"TimeoutStopSec": "TimeoutStopUSec"}.get(key, key) for key in PROPERTIES]
    words = ["systemctl", *scope, "show", "--property", ",".join(["LoadState", *names]), "--", name]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    known = dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)
    if answer.returncode != 0 or known.get("LoadState") != "loaded":
        return None
    known["TimeoutStopSec"] = known.get("TimeoutStopUSec", "")
    # A shell's command may have semicolons of its own.
    command = re.search(r"argv\[\]=(.*?) ; ignore_errors=", known.get("ExecStart", ""))
    known["ExecStart"] = command[1].strip() if command else ""
    return Unit(name, {key: known.get(key) or default for key, default in PROPERTIES.items()})


def read(path: Path) -> Unit:
    """Return a unit from its file and drop-ins; what cannot be read is not there."""
    properties, environment = dict(PROPERTIES), ""
    for file in (path, *sorted(Path(f"{path}.d").glob("*.conf"))):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        section = ""
        for line in re.sub(r"\\\n", " ", text).splitlines():
            header = re.fullmatch(r"\[(.*)\]", line.strip())
            section = header[1] if header else section
            key, separator, value = line.partition("=")
            if section != "Service" or not separator or line.lstrip().startswith(("#", ";")):
                continue
            key, value = key.strip(), value.strip()
            if key == "Environment":
                environment = f"{environment} {value}" if value else ""
            elif key == "TimeoutSec":
                properties["TimeoutStopSec"] = value
            elif key in properties:
                properties[key] = value or PROPERTIES[key]
    return Unit(path.name, {**properties, "Environment": environment})

"""The lines of ``zdworker check``: 80 columns, the application's frames, one line for each finding."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdworker.command import check
from zdworker.command.check import Check, Checked, line_of, shortened, total_of
from zdworker.ipc.messages import LEVELS, Finding

TRACEBACK = """\
Traceback (most recent call last):
  File "/venv/lib/python3.12/site-packages/zdworker/forkserver/server.py", line 3, in serve
    warnings = self._load(app)
               ^^^^^^^^^^^^^^^
  File "<frozen importlib._bootstrap>", line 1387, in _gcd_import
  File "/srv/app/app.py", line 2, in <module>
    connect()
  File "/srv/app/app.py", line 1, in connect
    raise RuntimeError("no database")
RuntimeError: no database"""


def test_a_traceback_keeps_the_applications_frames() -> None:
    assert shortened(TRACEBACK).splitlines() == [
        "Traceback (most recent call last):",
        '  File "/srv/app/app.py", line 2, in <module>',
        "    connect()",
        '  File "/srv/app/app.py", line 1, in connect',
        '    raise RuntimeError("no database")',
        "RuntimeError: no database",
    ]


def test_a_traceback_of_which_nothing_is_left_is_left_out() -> None:
    own = "\n".join(line for line in TRACEBACK.splitlines() if "/srv" not in line and "connect()" not in line)
    assert shortened(own.replace('    raise RuntimeError("no database")\n', "")) == ""


def test_information_is_left_out_of_what_was_printed() -> None:
    time = "[2026-01-01 12:00:00 +0000] [17]"
    text = f"{time} [INFO] Booting\n{time} [INFO] Waiting for application startup.\n{time} [ERROR] it broke\nmine\n"
    assert shortened(text) == "Waiting for application startup.\nit broke\nmine"


def test_long_details_lose_their_middle() -> None:
    lines = shortened("\n".join(f"line {number}" for number in range(1000))).splitlines()
    assert len(lines) == check.DETAIL_LINES_MAX + 1
    assert (lines[0], lines[-1]) == ("line 0", "line 999")
    assert "[… 976 lines are left out …]" in lines


def test_a_finding_is_a_line() -> None:
    assert (
        line_of(Finding("ok", "worker class", "zdworker.UvicornWorker"))
        == "ok       worker class: zdworker.UvicornWorker"
    )
    lines = line_of(Finding("error", "application", "a word " * 30, "what was printed")).splitlines()
    assert lines[0].startswith("error    application: a word")
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert lines[-1] == " " * 9 + "what was printed"


@given(st.sampled_from(LEVELS), st.text(st.characters(max_codepoint=127), max_size=300))
def test_lines_have_80_columns_where_words_allow(level: str, text: str) -> None:
    for line in line_of(Finding(level, "about", text)).splitlines():
        assert len(line) <= 80 or " " not in line[9:].removeprefix("about: ")


def test_what_it_comes_to() -> None:
    error, warning, fine = (Finding(level, "it", "is so") for level in ("error", "warning", "ok"))
    assert total_of(Checked([fine])) == "all well"
    assert total_of(Checked([fine, warning])) == "no error, 1 warning"
    assert total_of(Checked([error, error, warning])) == "2 errors, 1 warning"
    plain = Checked([fine, error]).to_plain()
    assert (plain["result"], plain["errors"], plain["warnings"]) == ("failed", 1, 0)
    assert plain["findings"][0] == {"level": "ok", "about": "it", "text": "is so", "details": ""}


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Checked:
    """Run a program in the place of the check; it has ``send`` and ``write``."""
    (tmp_path / "stands_in.py").write_text(
        "import os, socket, sys\n"
        "from zdworker.ipc.channel import Channel\n"
        "from zdworker.ipc.messages import Checking, Finding\n"
        "channel = Channel(socket.socket(fileno=int(sys.argv[1])))\n"
        "stacks, send = int(sys.argv[2]), channel.send\n"
        "def write(text, number=2): os.write(number, text.encode())\n" + text
    )
    monkeypatch.setattr(check, "PROGRAM", "stands_in")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    shown: list[Finding] = []
    checked = Check(["-m", "gunicorn"], "", shown.append).run()
    assert shown == checked.findings
    return checked


def test_what_was_printed_goes_with_what_was_being_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is there before the command looks for the first time."""
    checked = program(
        tmp_path,
        monkeypatch,
        "write('before')\n"
        "for name in 'ab':\n"
        "    write('\\x1e'); send(Checking(name, 1.0)); write(f'why {name}')\n"
        "    send(Finding('error', name, 'it says:', printed=True))\n"
        "write('\\x1e'); send(Checking('c', 1.0)); write('after')\n",
    )
    assert [(found.text, found.details) for found in checked.findings] == [
        ("it says: why a", "why a"),
        ("it says: why b", "why b"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("write('stack', stacks); os._exit(1)", "not done within 3 s (zd_boot_timeout): this is where it hangs"),
        ("os._exit(5)", "the check was ended by the site's code, with exit code 5"),
        ("os.kill(os.getpid(), 9)", "the check was killed by SIGKILL"),
    ],
)
def test_an_end_that_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    checked = program(tmp_path, monkeypatch, f"send(Checking('configuration', 3.0)); {text}\n")
    (found,) = checked.findings
    assert (found.level, found.about, found.text) == ("error", "configuration", said)


def test_arguments_that_are_not_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = program(tmp_path, monkeypatch, "write('usage: …'); os._exit(2)\n")
    assert (checked.findings, checked.misuse) == ([], "usage: …")

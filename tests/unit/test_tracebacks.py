"""The traceback that an application's author wants to read."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import pytest
from gunicorn import util

from zdworker import tracebacks


def raised(code: str, file: str = "/srv/shop/app.py") -> BaseException:
    """Return what code raises that stands in a file."""
    try:
        exec(compile(code, file, "exec"), {"json": json, "util": util})  # noqa: S102  # this test's own
    except BaseException as error:  # noqa: BLE001
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this file
        return error
    raise AssertionError("nothing was raised")


def files(text: str) -> list[str]:
    return [line.split('"')[1] for line in text.splitlines() if line.lstrip().startswith('File "')]


def test_frames_of_the_server_are_left_out() -> None:
    error = raised("util.import_app('no_such_module:app')")
    assert "gunicorn" in "".join(traceback.format_exception(error))
    text = tracebacks.of_application(error)
    assert files(text) == ["/srv/shop/app.py"]
    assert text.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")


def test_an_exception_of_the_servers_alone_is_shown_without_frames() -> None:
    error = raised("util.import_app('no_such_module:app')", file=util.__file__)
    assert tracebacks.of_application(error) == "ModuleNotFoundError: No module named 'no_such_module'\n"
    assert tracebacks.place(error) == ""


def test_of_libraries_the_frame_is_shown_that_has_raised() -> None:
    error = raised("json.loads('{')")
    assert [Path(file).name for file in files(tracebacks.of_application(error))] == ["app.py", "decoder.py"]


def test_an_installed_application_has_its_frames() -> None:
    code = "def f():\n    1 / 0\ndef g():\n    f()\ng()"
    file = "/srv/venv/lib/python3/site-packages/shop/app.py"
    assert files(tracebacks.of_application(raised(code, file))) == [file] * 3


def test_the_middle_of_a_deep_stack_is_left_out() -> None:
    text = tracebacks.of_application(raised("def f(n):\n    g(n - 1) if n else 1 / 0\ndef g(n):\n    f(n)\nf(50)"))
    assert text.count("/srv/shop/app.py") == tracebacks.FRAMES_MAX
    assert "line 5, in <module>" in text


def test_what_has_led_to_it_is_shown_in_the_same_way() -> None:
    code = "try:\n    json.loads('{')\nexcept ValueError as error:\n    raise OSError('no settings') from error"
    text = tracebacks.of_application(raised(code))
    assert [Path(file).name for file in files(text)] == ["app.py", "decoder.py", "app.py"]
    assert "The above exception was the direct cause" in text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_exceptions_in_a_group_are_shown_in_the_same_way() -> None:
    code = "try:\n    json.loads('{')\nexcept ValueError as error:\n    raise ExceptionGroup('two', [error])"
    text = tracebacks.of_application(raised(code))
    assert [Path(file).name for file in files(text.replace("|", " "))].count("decoder.py") >= 1
    assert "scanner" not in text
    assert "json/__init__" not in text


def test_a_syntax_error_needs_no_frame() -> None:
    error = raised("compile('def broken(:', '/srv/shop/settings.py', 'exec')", file=util.__file__)
    text = tracebacks.of_application(error)
    assert "Traceback" not in text
    assert 'File "/srv/shop/settings.py", line 1' in text


def test_the_place_is_that_of_the_application() -> None:
    assert tracebacks.place(raised("\n\n1 / 0")) == "/srv/shop/app.py, line 3"
    assert tracebacks.place(ValueError()) == ""

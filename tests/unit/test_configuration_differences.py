"""What differs between two evaluations of one configuration, and what only looks different."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from zdworker import gunicorn_config, syscalls
from zdworker.settings import Settings


def configuration(**settings: Any) -> Any:
    cfg: Any = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def sent(cfg: Any) -> dict[str, Any]:
    """Return the values as the master gets them from a generation."""
    values: dict[str, Any] = json.loads(json.dumps(gunicorn_config.plain_values(cfg)))
    return values


def differences(one: Any, other: Any, link: str = "/") -> dict[str, str]:
    return gunicorn_config.differences(one, sent(other), link)


def test_both_values_are_shown() -> None:
    found = differences(configuration(bind="127.0.0.1:80", workers=2), configuration(bind="127.0.0.1:81", workers=2))
    assert list(found) == ["bind"]
    assert "127.0.0.1:80" in found["bind"]
    assert "127.0.0.1:81" in found["bind"]


def test_the_same_configuration_does_not_differ() -> None:
    cfg = configuration(bind=["a:1", "b:2"], logconfig_dict={"version": 1, "handlers": {}}, raw_env=["A=1"])
    assert differences(cfg, cfg) == {}


def test_order_and_a_link_are_no_difference(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    link = tmp_path / "current"
    link.symlink_to("release")
    one = configuration(raw_env=["A=1", "B=2"], pythonpath=f"{link}/lib", bind=[f"unix:{link}/s"], chdir=str(link))
    release = link.resolve()
    other = configuration(raw_env=["B=2", "A=1"], pythonpath=f"{release}/lib", bind=[f"unix:{release}/s"])
    assert differences(one, other, str(link)) == {}


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("raw_env", (["TOKEN=secret", "A=1"], ["TOKEN=other", "A=1"]), "TOKEN"),
        ("logconfig_dict", ({"password": "secret"}, {"password": "other"}), "another"),
    ],
)
def test_what_may_be_secret_is_not_shown(name: str, values: tuple[Any, Any], shown: str) -> None:
    one, other = (configuration(**{name: value}) for value in values)
    text = differences(one, other)[name]
    assert shown in text
    assert "secret" not in text
    assert "other)" not in text


def test_a_long_value_is_cut() -> None:
    text = differences(configuration(proc_name="a" * 9999), configuration(proc_name="b" * 9999))["proc_name"]
    assert len(text) < 3 * gunicorn_config.SHOWN_MAX


def test_own_settings_are_compared_too() -> None:
    assert list(gunicorn_config.zd_differences(Settings(), Settings(max_surge=2))) == ["zd_max_surge"]


def test_another_bind_leaves_the_configuration_alone() -> None:
    cfg = configuration(bind="a:1", backlog=7)
    other = gunicorn_config.with_bind(cfg, ["b:2"])
    assert (cfg.address, other.address, other.backlog) == ([("a", 1)], [("b", 2)], 7)


def test_a_file_that_is_written_or_replaced_is_another_one(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    assert syscalls.file_state(str(file)) is None
    file.write_text("one")
    before = syscalls.file_state(str(file))
    assert syscalls.file_state(str(file)) == before
    other.write_text("two")
    other.replace(file)
    assert syscalls.file_state(str(file)) != before

"""Which version a generation is: the user's word, else the release behind a link, else what git says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from zdworker import settings
from zdworker.errors import SettingError
from zdworker.forkserver import version
from zdworker.forkserver.version import label_of


def test_the_user_s_word_counts(tmp_path: Path) -> None:
    assert label_of("v1.4.2", str(tmp_path)) == "v1.4.2"
    assert label_of("", str(tmp_path)) == ""


def test_the_release_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "releases" / "42" / "src").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/42")
    assert label_of("", str(tmp_path / "current")) == "42"
    assert label_of("", str(tmp_path / "current" / "src")) == "42"
    assert label_of("", str(tmp_path / "releases" / "42")) == ""


def test_a_link_that_is_there_for_another_reason(tmp_path: Path) -> None:
    """``/var/www``, a link to another disk: a working copy below it is what git says, if git says something."""
    data, var = tmp_path / "data", tmp_path / "var"
    (data / "www" / "shop").mkdir(parents=True)
    var.mkdir()
    (var / "www").symlink_to(data / "www")
    shop = var / "www" / "shop"
    assert label_of("", str(shop)) == "www", "it may be a release all the same"
    git(shop, "init", "-q")
    git(shop, "commit", "-q", "--allow-empty", "-m", "first")
    git(shop, "tag", "v3")
    assert label_of("", str(shop)) == "v3"
    (var / "current").symlink_to(data / "www" / "shop")
    assert label_of("", str(var / "current")) == "shop"


def git(directory: Path, *words: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", "-C", str(directory), *identity, *words], check=True, capture_output=True)


def test_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    assert label_of("", str(tmp_path)) == "", "there is no commit"
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    git(tmp_path, "tag", "v2")
    (tmp_path / "src").mkdir()
    assert label_of("", str(tmp_path / "src")) == "v2"
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert label_of("", str(tmp_path)) == ""


def test_git_is_asked_without_writing(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    file = tmp_path / "app.py"
    file.write_text("1")
    git(tmp_path, "add", "app.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "v2")
    os.utime(file, (1, 1))
    index = (tmp_path / ".git" / "index").read_bytes()
    assert label_of("", str(tmp_path)) == "v2"
    file.write_text("2")
    assert label_of("", str(tmp_path)) == "v2-dirty"
    assert (tmp_path / ".git" / "index").read_bytes() == index


def test_a_git_that_does_not_answer_costs_no_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _name: str(slow))
    monkeypatch.setattr(version, "GIT_TIMEOUT_S", 0.1)
    assert label_of("", str(tmp_path)) == ""


def test_the_setting_is_a_text_or_a_function() -> None:
    assert settings.read({"zd_version": " v3 "}, {}).version == "v3"
    assert settings.read({"zd_version": lambda: "v4"}, {}).version == "v4"
    assert settings.read({}, {"ZD_VERSION": "v5"}).version == "v5"
    assert settings.read({"zd_version": None}, {}).version == ""


@pytest.mark.parametrize("bad", [7, "two\nlines", "x" * 101, lambda: 7])
def test_what_is_no_label_is_refused(bad: object) -> None:
    with pytest.raises(SettingError, match=r"zd_version = .* is not valid: it must be a text of at most 100"):
        settings.read({"zd_version": bad}, {})


def test_a_function_that_raises_is_refused() -> None:
    def unknown() -> str:
        raise OSError("no file VERSION")

    with pytest.raises(SettingError, match="zd_version cannot be called: OSError: no file VERSION"):
        settings.read({"zd_version": unknown}, {})

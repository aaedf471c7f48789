"""The image: the recipe's Dockerfile, built by buildah on a base that debootstrap makes.

Rules:

* No registry of images is needed: the base is Debian's own Python under the name that the Dockerfile begins with.
* The packages are put into the base beforehand, so the build itself needs no network; zdworker is the wheel of this
  tree.
* Where something is not available (root, a program, Debian's archive), the tests are skipped and say what it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.documents import ROOT
from tests.harness.recipes import DEPLOY, EXAMPLE
from tests.integration.conftest import make_server, pytest_runtest_makereport, site, start

__all__ = ["make_server", "pytest_runtest_makereport", "site", "start"]

PROGRAMS = ("buildah", "debootstrap", "nsenter", "setpriv", "unshare")
PACKAGES = ("ca-certificates", "python3", "python3-pip")
SUITE, ARCHIVE = "bookworm", "http://deb.debian.org/debian"
PYTHON = "3.11"
"""The one of that suite."""
PIP_CONF = "[global]\nno-index = true\nfind-links = /wheels\n"


@dataclass(frozen=True)
class BuiltImage:
    """An image with its files in a directory, and what its configuration says."""

    root: Path
    environment: dict[str, str]
    command: list[str]
    directory: str
    user: str


class Buildah:
    """buildah with a store of its own, which it leaves in one directory."""

    def __init__(self, directory: Path) -> None:
        self._words = ["buildah", "--root", str(directory / "store"), "--runroot", str(directory / "run")]
        self._words += ["--storage-driver", "vfs"]  # needs nothing of the kernel

    def __call__(self, *words: str) -> str:
        return run([*self._words, *words]).strip()


def run(words: Sequence[str]) -> str:
    """Run a command and return its output.

    :raises AssertionError: it has failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImage]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"building an image takes root and {', '.join(missing or PROGRAMS)}")
    directory = tmp_path_factory.mktemp("image")
    base = directory / "base"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(base), ARCHIVE],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"debootstrap has failed: {made.stdout.strip().splitlines()[-1:]}")
    _like_the_official_one(base)
    buildah = Buildah(directory)
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    name = dockerfile.split()[1]  # FROM name
    empty = buildah("from", "scratch")
    buildah("add", "--quiet", empty, str(base), "/")
    buildah("commit", "--quiet", "--rm", empty, f"docker.io/library/{name}")
    context = directory / "context"
    shutil.copytree(EXAMPLE, context, ignore=shutil.ignore_patterns("deploy"))
    (context / "Dockerfile").write_text(dockerfile)
    buildah("bud", "--quiet", "--isolation", "chroot", "--pull-never", "--tag", "app", str(context))
    root = Path(buildah("mount", buildah("from", "--pull-never", "app")))
    config: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", "app"))["OCIv1"]["config"]
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    yield BuiltImage(root, environment, config["Cmd"], config["WorkingDir"], config["User"])
    buildah("rm", "--all")
    shutil.rmtree(directory)


def _like_the_official_one(base: Path) -> None:
    """Make Debian's Python what it is in the official image, with a directory of packages in the place of PyPI."""
    (base / "usr/bin/python").symlink_to("python3")
    (base / f"usr/lib/python{PYTHON}/EXTERNALLY-MANAGED").unlink()
    (base / "etc/pip.conf").write_text(PIP_CONF)
    wheels = base / "wheels"
    pip = [sys.executable, "-m", "pip"]
    run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)])
    requirements = ["--requirement", str(EXAMPLE / "requirements.txt"), "--find-links", str(wheels)]
    only = ["--only-binary=:all:", "--python-version", PYTHON]
    run([*pip, "download", "--quiet", "--dest", str(wheels), *only, *requirements])

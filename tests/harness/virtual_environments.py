"""Virtual environments made in milliseconds: an interpreter that finds packages where a test wants them."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path


def add_interpreter(directory: Path) -> Path:
    """Make a virtual environment of ``directory``, without packages; return its interpreter."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    python = directory / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(base)
    return python


def site_packages(directory: Path) -> Path:
    """Return where a virtual environment in ``directory`` has its packages."""
    return directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def virtual_environment(directory: Path) -> Path:
    """Make a virtual environment with the packages of this one; return its interpreter."""
    packages = site_packages(directory)
    packages.parent.mkdir(parents=True)
    packages.symlink_to(sysconfig.get_path("purelib"))
    return add_interpreter(directory)

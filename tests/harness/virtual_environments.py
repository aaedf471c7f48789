"""Virtual environments made in milliseconds: an interpreter that finds packages where a test wants them."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

WITH_LENT_PIP = """\
#!/bin/sh
[ "$*" = "-m venv venv" ] || exec {python} "$@"
{python} -m venv --without-pip venv
echo '#!/bin/sh\nexec {python} -m pip --python venv/bin/python "$@"' > venv/bin/pip
chmod +x venv/bin/pip
"""


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


def lend_pip(program: Path, python: str) -> None:
    """Make a program that is ``python``, but for a new environment: that gets pip from ``python``.

    To install it takes seconds.
    """
    program.write_text(WITH_LENT_PIP.format(python=python))
    program.chmod(0o755)


def packages_as_a_wheel(directory: Path, *places: str) -> Path:
    """Make a package that brings the packages in ``places``, and the two commands: pip needs no network."""
    path = directory / "packages_of_the_tests-1-py3-none-any.whl"
    information = "packages_of_the_tests-1.dist-info"
    scripts = "gunicorn = gunicorn.app.wsgiapp:run\nzdworker = zdworker.command.cli:main\n"
    files = {
        "packages_of_the_tests.pth": "".join(f"import site; site.addsitedir({place!r})\n" for place in places),
        f"{information}/METADATA": "Metadata-Version: 2.1\nName: packages-of-the-tests\nVersion: 1\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/entry_points.txt": f"[console_scripts]\n{scripts}",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{information}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{information}/RECORD"]))
    return path

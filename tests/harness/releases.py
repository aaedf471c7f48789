"""Releases of a site behind a link, each with its interpreter, its packages and its configuration."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from tests.harness.application_site import Site
from tests.harness.server import Server
from tests.harness.virtual_environments import site_packages, virtual_environment

TIMEOUT_S = 5
"""Seconds of ``zd_boot_timeout``."""


class Releases:
    """Releases of one site, each a directory; the server runs by the link."""

    def __init__(self, site: Site, server: Server) -> None:
        self.site, self.server = site, server

    def path(self, version: str) -> Path:
        return self.site.directory / "releases" / version

    def add(self, version: str, configuration: str = "") -> Path:
        """Add one with all packages, and have the link point to it."""
        self.site.release(version)
        virtual_environment(self.path(version) / "venv")
        self.configure(version, configuration)
        return self.path(version)

    def configure(self, version: str, code: str) -> None:
        """Write a release's configuration; ``code`` stands at its end."""
        text = (self.site.directory / "gunicorn.conf.py").read_text()
        (self.path(version) / "gunicorn.conf.py").write_text(text + code.format(master=self.server.master))

    def own_packages(self, version: str) -> Path:
        """Have a release's packages in a directory of its own, each a link; return that."""
        packages = site_packages(self.path(version) / "venv")
        packages.unlink()
        packages.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            (packages / entry.name).symlink_to(entry)
        return packages

    def own_package(self, version: str, package: Path) -> Path:
        """Have a package of a release be a copy; return that."""
        packages = self.own_packages(version)
        copy = packages / package.name
        copy.unlink(missing_ok=True)
        for finder in packages.glob("*zdworker*"):  # an editable installation
            finder.unlink()
        return Path(shutil.copytree(package, copy))

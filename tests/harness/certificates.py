"""A self-signed certificate for the servers under test."""

from __future__ import annotations

import subprocess
from pathlib import Path

MAKE_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    " -keyout key.pem -out certificate.pem"
)


def make_certificate(directory: Path) -> None:
    """Write a self-signed certificate and its key to ``certificate.pem`` and ``key.pem`` in ``directory``."""
    subprocess.run(MAKE_CERTIFICATE.split(), cwd=directory, check=True, capture_output=True)

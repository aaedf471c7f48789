"""The script that upgrades stock Gunicorn, sent to a master that works in another way."""

from __future__ import annotations

import signal

import pytest

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start


@pytest.mark.parametrize("signum", [signal.SIGWINCH, signal.SIGQUIT], ids=lambda signum: str(signum.name))
def test_the_rest_of_the_old_script_is_explained(start: Start, site: Site, signum: signal.Signals) -> None:
    server = start(workers=1, preload_app=True)
    server.reload("two")
    assert "starts no second master" not in server.log
    server.signal(signum)
    wait_for(lambda: "starts no second master" in server.log, BOOT_TIMEOUT_S, "the master says what is different here")
    if signum is signal.SIGQUIT:
        assert server.wait_exit(BOOT_TIMEOUT_S) == 0
    else:
        assert set(server.versions().values()) == {"two"}

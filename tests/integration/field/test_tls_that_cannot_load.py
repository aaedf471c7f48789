"""TLS that cannot load fails the start or the reload, with every worker class, and what was served goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.harness.application_site import Site
from tests.harness.certificates import make_certificate
from tests.harness.control_client import reload
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start
from tests.harness.worker_classes import ALL, THREAD, UVICORN

GOOD = {"certfile": "certificate.pem", "keyfile": "key.pem"}

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")


@pytest.fixture(autouse=True)
def certificates(site: Site) -> None:
    """A certificate with its key, and a key of another one: ``other/key.pem``."""
    make_certificate(site.directory)
    other = site.directory / "other"
    other.mkdir()
    make_certificate(other)


def plain(server: Server, code: str = "", **settings: Any) -> None:
    """Write a configuration without a single hook."""
    server.settings.update(settings)
    control = str(server.site.directory / "gunicorn.ctl")
    lines = [f"{name} = {value!r}\n" for name, value in {"control_socket": control, **server.settings}.items()]
    server.site.write("gunicorn.conf.py", "".join(lines) + code)


def answers(server: Server) -> str:
    return str(server.get("/", tls=True)["version"])


def test_every_class_refuses_it_in_the_generation(make_server: Start, site: Site) -> None:
    server = make_server(**GOOD, workers=2)
    plain(server)
    server.launch_as_is().wait_full()
    workers = server.workers()
    site.deploy("two")
    for worker in ALL:
        plain(server, worker_class=worker.path, keyfile="other/key.pem")
        last = reload(server)
        assert (last["result"], last["traceback"]) == ("failed", None), worker
        assert last["error"] == "TLS cannot load: keyfile other/key.pem does not belong to certfile certificate.pem"
        assert server.workers() == workers
        assert answers(server) == "one"
    plain(server, worker_class=UVICORN.path, **GOOD)
    assert reload(server)["result"] == "done"
    assert answers(server) == "two"


def test_with_hooks_every_class_refuses_it_in_the_worker(start: Start, site: Site) -> None:
    """What the hooks leave is known only there: they may bring the files."""
    server = start(**GOOD, workers=2)
    workers = server.workers()
    for worker in ALL:
        server.configure(worker_class=worker.path, certfile="nowhere.pem")
        last = reload(server)
        assert last["result"] == "failed", worker
        assert "TLS cannot load: certfile nowhere.pem cannot be read: No such file or directory" in last["error"]
        assert answers(server) == "one"
    assert server.wait_full() == workers


@pytest.mark.parametrize("worker", [THREAD, UVICORN], ids=str)
def test_a_hook_brings_the_files(make_server: Start, site: Site, worker: Any) -> None:
    """As with stock Gunicorn, whose workers read the files after their hooks."""
    shutil.copy(site.directory / "other" / "key.pem", site.directory / "late.pem")
    bring = "\ndef post_fork(server, worker):\n    import shutil\n    shutil.copy('key.pem', 'late.pem')\n"
    server = make_server(certfile="certificate.pem", keyfile="late.pem", worker_class=worker.path, workers=1)
    site.serve(worker.kind)
    plain(server, bring)
    server.launch_as_is().wait_full()
    assert answers(server) == "one"
    site.deploy("two")
    assert reload(server)["result"] == "done"
    assert answers(server) == "two"


def test_an_environment_that_a_hook_in_the_master_has_set(make_server: Start, site: Site) -> None:
    """The hook that makes the context reads it, in the workers."""
    code = (
        "\nimport os\ndef on_starting(server):\n    os.environ['KEY'] = 'key.pem'\n"
        "def ssl_context(conf, default):\n    conf.set('keyfile', os.environ['KEY'])\n    return default()\n"
    )
    server = make_server(certfile="certificate.pem", workers=1, worker_class=THREAD.path)
    site.serve("wsgi")
    plain(server, code)
    server.launch_as_is().wait_full()
    assert answers(server) == "one"
    site.deploy("two")
    assert reload(server)["result"] == "done"
    assert answers(server) == "two"


@pytest.mark.parametrize("worker", [THREAD, UVICORN], ids=str)
def test_the_first_start_ends_with_the_reason(make_server: Start, site: Site, worker: Any) -> None:
    server = make_server(certfile="certificate.pem", keyfile="other/key.pem", worker_class=worker.path)
    plain(server)
    server.launch_as_is()
    assert server.wait_exit(BOOT_TIMEOUT_S) not in (0, None)
    assert "TLS cannot load: keyfile other/key.pem does not belong to certfile certificate.pem" in server.log
    server.wait_nothing_left(BOOT_TIMEOUT_S)
    assert server.port_free()


@ROOT
def test_a_key_that_the_workers_may_not_read(make_server: Start, site: Site) -> None:
    """Workers read it after they have dropped privileges; one that the configuration has read as root is served."""
    key = Path(site.directory / "key.pem")
    key.chmod(0o600)
    server = make_server(**GOOD, user="nobody", group="nogroup", worker_class=THREAD.path, preload_app=True)
    site.serve("wsgi")
    plain(server)
    server.launch_as_is()
    assert server.wait_exit(BOOT_TIMEOUT_S) not in (0, None)
    assert "TLS cannot load: keyfile key.pem cannot be read as the user nobody: Permission denied" in server.log
    code = (
        "\nimport ssl\n_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "_context.load_cert_chain(certfile, keyfile)\n"
        "def ssl_context(conf, default):\n    return _context\n"
    )
    plain(server, code)
    server.launch_as_is()
    server.wait_full()
    assert answers(server) == "one"

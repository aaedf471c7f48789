"""The playbook of the Ansible recipe, run against three hosts behind the HAProxy of the recipes, under load throughout.

Rules:

* Playbook, inventory, HAProxy's configuration, service and commands are the recipes' own, taken from their files or
  pages; what is changed is named here or in ``hosts.py``.
* The bad code answers every fifth of its requests with 500 and is otherwise good. What clients see is counted at the
  clients, and nothing is tried twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import documents
from tests.harness.application_site import ENDPOINTS, Site
from tests.harness.clients import Load
from tests.harness.processes import wait_for
from tests.harness.proxies import HAProxy
from tests.harness.recipes import DEPLOY, EXAMPLE, adapted, changed, commands, find, run, versions
from tests.machines.hosts import WHEEL, Host, make_key, own_network, why_not

NAMES = ("app1.example.org", "app2.example.org", "app3.example.org")
FEW = {'"WEB_CONCURRENCY", "4"': '"WEB_CONCURRENCY", "2"'}
SHORT = {"zd_canary_seconds = 30": "zd_canary_seconds = 4"}
"""For code that is good. Bad code has the page's own time: nothing but the judgement can have ended it sooner."""
WORK = """
import itertools
numbers, sound = itertools.count(1), app
async def app(scope, receive, send):
    if scope["type"] == "http":
        time.sleep(0.02)
        if FAILS and next(numbers) % 5 == 0:
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            return await send({"type": "http.response.body", "body": b""})
    await sound(scope, receive, send)
"""
"""The application works for some time. If it did not, the first worker would take nearly all there is to do, and a
canary would see next to nothing.
"""
GIVEN_UP = r"given up: (\d+) of (\d+) answers of generation 3 failed, 0 of \d+ of generation 2"


class Balancer(HAProxy):
    """HAProxy with the recipe's file, at the recipe's port; it may try nothing twice, and logs."""

    def __init__(self) -> None:
        super().__init__("")
        self.address = ("127.0.0.1", 80)

    def configuration(self) -> str:
        log = 'log stdout format raw local0\n    log-format "%ST %ts %r"'
        return adapted("haproxy/haproxy.cfg", {"mode http": f"mode http\n    retries 0\n    {log}"})


class Operator:
    """The place where Ansible is run: the application's repository with the playbook in it, and a key for the hosts."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site = site
        self.directory = directory
        self.key = make_key(directory / "key")
        self.repository = directory / "repository"
        self.repository.mkdir()
        for name in ("deploy.yml", "hosts.ini"):
            (self.repository / name).write_text((DEPLOY / "ansible" / name).read_text())
        (self.repository / "requirements.txt").write_text(f"{WHEEL}\n")
        self._git("init", "-q", ".")

    def meet(self, hosts: list[Host]) -> None:
        """Have ssh know the hosts by the names that they have in the inventory."""
        (self.directory / "ssh_config").write_text("".join(host.ssh_config(self.directory) for host in hosts))

    def commit(self, version: str, *, bad: bool = False) -> None:
        """Commit the application as ``version``, with the example's configuration and what the pages add to it."""
        self.site.deploy(version, extra=f"\nFAILS = {bad}\n{WORK}")
        for name in ("app.py", ENDPOINTS):
            (self.repository / name).write_text((self.site.directory / name).read_text())
        added = shown("several-machines.md", "bind =") + shown("ansible.md", "zd_canary_seconds =")
        text = changed((EXAMPLE / "gunicorn.conf.py").read_text() + added, FEW if bad else {**FEW, **SHORT})
        (self.repository / "gunicorn.conf.py").write_text(text)
        self._git("add", "-A")
        self._git("commit", "-q", "-m", version)

    def play(self) -> tuple[int, str]:
        """Run the page's command; return its exit code and its output."""
        own = {
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "ANSIBLE_SSH_ARGS": f"-F {self.directory / 'ssh_config'}",
            "ANSIBLE_PIPELINING": "1",
        }
        done = run(shlex.split(commands("ansible.md", "ansible-playbook")), self.repository, own, deadline=300)
        return done.returncode, done.stdout

    def _git(self, *words: str) -> None:
        quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        done = run(["git", "-c", "user.name=test", "-c", "user.email=test", *words], self.repository, quiet)
        assert done.returncode == 0, done.stdout


def shown(page: str, beginning: str) -> str:
    """Return the Python on a recipe's page that begins so."""
    blocks = [block.text for block in documents.blocks(f"docs/recipes/{page}") if block.language == "python"]
    return next(text for text in blocks if text.startswith(beginning))


def seen(host: Host) -> dict[str, Any]:
    """Return what of a host a deploy would change."""
    status = host.status()
    return {
        **{name: status[name] for name in ("pid", "generation", "label")},
        "workers": [worker["pid"] for worker in status["workers"]],
        "fork servers": [server["pid"] for server in status["fork_servers"]],
        "generations": [generation["generation"] for generation in status["generations"]],
        "last reload": status["last_reload"],
        "current": os.readlink(host.root / "current"),
        "releases": sorted(os.listdir(host.root / "releases")),
    }


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    if reason := why_not(tmp_path) or ("" if find("ansible-playbook") else "ansible-core is not installed"):
        pytest.skip(reason)
    site = Site()
    yield Operator(site, tmp_path)
    site.remove()


@pytest.fixture
def hosts(operator: Operator, tmp_path: Path) -> Iterator[list[Host]]:
    """Three hosts; these tests, with Ansible, HAProxy and the clients, are on the same network."""
    with own_network(), contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(Host(name, number, operator.key, tmp_path / name))
            for number, name in enumerate(NAMES, 1)
        ]
        operator.meet(made)
        yield made


def test_a_rolling_deploy_stops_where_its_code_is_given_up(operator: Operator, hosts: list[Host]) -> None:
    operator.commit("one")
    code, output = operator.play()
    assert code == 0, output
    for host in hosts:
        host.start_service()
    with Balancer() as balancer, contextlib.ExitStack() as stack:
        styles = {"new": 9, "kept": 2, "slow": 2}
        loads = [
            stack.enter_context(Load(balancer.address, style, clients=clients, pause=0.04, think=0.02))
            for style, clients in styles.items()
        ]

        # A good release reaches all three.
        operator.commit("two")
        code, output = operator.play()
        assert code == 0, output
        assert versions_of(hosts) == [{"two"}] * 3
        before = [seen(host) for host in hosts]

        # A bad one is given up on the first, and the play ends there.
        bad_since = time.monotonic()
        operator.commit("three", bad=True)
        code, output = operator.play()
        assert code == 2, output
        told = re.search(GIVEN_UP, output)
        assert told is not None, output
        assert "TASK [Activate it]" in output
        assert re.findall(r"^(?:fatal|changed): \[(app\d)", output, re.MULTILINE) == ["app1"] * 3, output
        assert [seen(host) for host in hosts[1:]] == before[1:], "they have not seen it"
        reload = hosts[0].status()["last_reload"]
        assert (reload["result"], reload["generation"]) == ("failed", 3)
        # Its workers, its link and its releases.
        as_before = {**before[0], "last reload": reload}
        wait_for(lambda: seen(hosts[0]) == as_before, 30, "the canary has drained, and nothing else has changed")
        bad_until = time.monotonic()
        assert versions_of(hosts) == [{"two"}] * 3

        # The next good one goes through.
        operator.commit("four")
        code, output = operator.play()
        assert code == 0, output
        assert versions_of(hosts) == [{"four"}] * 3
        results = [load.stop() for load in loads]

    failures = [failure for result in results for failure in result.failures]
    answers = [answer for result in results for answer in result.answers]
    assert {failure.how for failure in failures} == {"status 500"}, "what the bad code has answered, and nothing else"
    assert all(bad_since < failure.time < bad_until for failure in failures)
    good_ones = [answer for answer in answers if answer.version == "three"]
    assert len({answer.pid for answer in good_ones}) == 1, "the canary"
    canary_s = [answer.time for answer in good_ones] + [failure.time for failure in failures]
    assert len(failures) == len(canary_s) // 5, "each request of the canary is accounted for"
    meanwhile = len([answer for answer in answers if min(canary_s) <= answer.time <= max(canary_s)]) + len(failures)
    assert len(canary_s) < meanwhile / 3, "the canary has a share of what one of three hosts has"
    figures = f"{len(answers)} answers, {len(failures)} failed; of the canary's {len(canary_s)} requests"
    print(f"{figures}, of {meanwhile} in its time; {told[0]}")


def versions_of(hosts: list[Host]) -> list[set[str]]:
    return [versions((host.address, 8000)) for host in hosts]

"""Gunicorn's hooks keep their meaning and their place, and what they set arrives where it is read."""

from __future__ import annotations

import os
import re
import resource
import signal

import pytest

from tests.harness import control_client
from tests.harness.application_site import START_HOOKS, Site
from tests.harness.processes import wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Server, Start

PRELOAD = pytest.mark.parametrize("preload", [False, True], ids=["no preload", "preload"])


def names(site: Site) -> list[str]:
    return [event["event"] for event in site.events()]


def assert_by_master(server: Server, *hooks: str) -> None:
    for hook in hooks:
        assert {event["by"] for event in server.site.events(hook)} == {server.master}, hook


def assert_by_worker(site: Site, workers: list[int], *hooks: str) -> None:
    """Each of ``workers`` ran each of ``hooks`` once, and knew its own pid."""
    for hook in hooks:
        events = site.events(hook)
        assert sorted(event["by"] for event in events) == sorted(workers), hook
        assert all(event["pid"] == event["by"] for event in events), hook


@PRELOAD
def test_hooks_from_start_to_stop(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload, extra=START_HOOKS)
    workers = server.workers()
    assert server.stop() == 0
    order = list(dict.fromkeys(names(site)))
    for earlier, later in [
        ("on_starting", "when_ready"),
        ("when_ready", "pre_fork"),
        ("pre_fork", "post_fork"),
        ("post_fork", "post_worker_init"),
        ("post_worker_init", "worker_exit"),
        ("worker_exit", "child_exit"),
        ("child_exit", "on_exit"),
    ]:
        assert order.index(earlier) < order.index(later), (earlier, later)
    assert order[-1] == "on_exit"
    assert_by_master(server, "nworkers_changed", "on_starting", "when_ready", "pre_fork", "child_exit", "on_exit")
    assert_by_worker(site, workers, "post_fork", "post_worker_init", "worker_exit")
    for hook in ("on_starting", "when_ready", "on_exit"):
        assert len(site.events(hook)) == 1, hook
    assert sorted(event["age"] for event in site.events("pre_fork")) == [1, 2]
    assert sorted(event["pid"] for event in site.events("child_exit")) == sorted(workers)
    assert site.events("when_ready")[0]["listeners"] == 1
    assert site.events("when_ready")[0]["master"] == server.master
    assert [(event["old"], event["new"]) for event in site.events("nworkers_changed")] == [(None, 2)]
    assert site.events("worker_abort") == []


@PRELOAD
def test_hooks_at_a_reload(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload, extra=START_HOOKS)
    old = server.workers()
    server.reload("two")
    new = server.workers()
    wait_for(lambda: len(site.events("child_exit")) == 2, BOOT_TIMEOUT_S, "the master has seen the old workers' end")
    assert_by_master(server, "on_reload", "pre_fork", "child_exit")
    assert len(site.events("on_reload")) == 1
    assert_by_worker(site, old, "worker_exit")
    assert_by_worker(site, old + new, "post_fork", "post_worker_init")
    (reload,) = site.events("on_reload")
    later = [event for event in site.events("pre_fork") if event["time"] > reload["time"]]
    assert [event["age"] for event in later] == [3, 4], "on_reload comes before the first new worker"
    assert len(site.events("on_starting")) == len(site.events("when_ready")) == 1


def test_a_failed_reload_runs_no_hook_of_a_good_one(start: Start, site: Site) -> None:
    server = start(workers=2, preload_app=True)
    before = names(site)
    site.break_("raise")
    assert control_client.reload(server)["result"] == "failed"
    wait_for(lambda: len(server.fork_servers()) == 1, BOOT_TIMEOUT_S, "the new generation has been given up")
    assert names(site) == before


def test_new_hooks_come_with_a_reload(start: Start, site: Site) -> None:
    server = start(workers=1)
    server.extra = "\n\ndef on_reload(server):\n    _note('new_on_reload')\n"
    server.extra += "\n\ndef child_exit(server, worker):\n    _note('new_child_exit')\n"
    server.configure()
    server.reload("two")
    wait_for(lambda: site.events("new_child_exit"), BOOT_TIMEOUT_S, "the new hook has run")
    assert site.events("new_on_reload")
    assert not site.events("on_reload")


@pytest.mark.parametrize("hook", ["on_starting", "when_ready"])
def test_workers_inherit_what_a_hook_sets_for_its_process(start: Start, hook: str) -> None:
    set_limit = "import resource\n    resource.setrlimit(resource.RLIMIT_CORE, (12345, 12345))"
    server = start(workers=2, extra=f"\n\ndef {hook}(server):\n    {set_limit}\n")
    for worker in server.workers():
        assert resource.prlimit(worker, resource.RLIMIT_CORE) == (12345, 12345)


SET_THINGS = """

def on_starting(server):
    server.from_on_starting = {"plain": ["data", 1, 2.5, None, True]}
    _os.environ["FROM_ON_STARTING"] = "yes"


def when_ready(server):
    server.from_when_ready = "text"
    _os.environ["FROM_WHEN_READY"] = "yes"
    _os.environ.pop("TO_BE_DELETED", None)


def pre_fork(server, worker):
    server.from_pre_fork = worker.age
    worker.from_pre_fork = f"age {worker.age}"
    worker.not_plain = object()
    _os.environ["FROM_PRE_FORK"] = f"age {worker.age}"


def post_fork(server, worker):
    _note(
        "read",
        age=worker.age,
        on_starting=server.from_on_starting,
        when_ready=server.from_when_ready,
        server=server.from_pre_fork,
        worker=worker.from_pre_fork,
        environment=_os.environ["FROM_PRE_FORK"],
        deleted=_os.environ.get("TO_BE_DELETED"),
        log=hasattr(server, "log") and hasattr(worker, "log"),
        cfg=worker.cfg.workers,
        master=server.pid,
        parent=worker.ppid,
    )
"""


@PRELOAD
def test_what_master_hooks_set_reaches_the_worker(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload, extra=SET_THINGS, environment={"TO_BE_DELETED": "here"})
    server.reload("two")
    read = site.events("read")
    assert sorted(event["age"] for event in read) == [1, 2, 3, 4]
    for event in read:
        assert event["on_starting"] == {"plain": ["data", 1, 2.5, None, True]}
        assert event["when_ready"] == "text"
        assert event["server"] == event["age"]
        assert event["worker"] == event["environment"] == f"age {event['age']}"
        assert event["deleted"] is None
        assert event["log"]
        assert event["cfg"] == 2
        assert event["master"] == event["parent"] == server.master
    for name in ("FROM_ON_STARTING", "FROM_WHEN_READY"):
        assert server.get(f"/environment?name={name}")["value"] == "yes"
    assert server.get("/environment?name=TO_BE_DELETED")["value"] is None


RAISING = """

def child_exit(server, worker):
    _note("child_exit")
    raise RuntimeError("child_exit raises")


def nworkers_changed(server, new_value, old_value):
    if old_value is not None:
        raise RuntimeError("nworkers_changed raises")


def on_reload(server):
    raise SystemExit(5)
"""


def test_a_hook_that_raises_in_the_master_never_ends_it(start: Start, site: Site) -> None:
    server = start(workers=2, extra=RAISING)
    old = server.workers()
    os.kill(old[0], signal.SIGKILL)
    wait_for(lambda: site.events("child_exit"), BOOT_TIMEOUT_S, "the hook has run")
    server.wait_full()
    server.signal(signal.SIGTTIN)
    server.settings["workers"] = 3
    server.wait_full()
    for text in ("child_exit raises", "nworkers_changed raises"):
        wait_for(lambda: text in server.log, BOOT_TIMEOUT_S, text)  # noqa: B023  # at once
    control_client.reload(server)  # the master lives, or it would not tell how that has ended
    server.extra = ""
    server.configure()
    server.reload("two")
    assert server.stop() == 0


PRE_FORK_RAISES = """

def pre_fork(server, worker):
    if worker.age == 3:
        raise RuntimeError("pre_fork raises")
"""


def test_pre_fork_that_raises_once(start: Start, site: Site) -> None:
    server = start(workers=2, extra=PRE_FORK_RAISES)
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for(lambda: len(site.marks("startup")) == 3, BOOT_TIMEOUT_S, "a replacement has started")
    server.wait_full()
    wait_for(lambda: "pre_fork raises" in server.log, BOOT_TIMEOUT_S, "it is in the log")


OUR_HOOKS = """

def zd_worker_ready(server, worker):
    _note("zd_worker_ready", pid=worker.pid, slot=worker.slot, generation=worker.generation)


def zd_reload_started(server):
    _note("zd_reload_started")


def zd_reload_finished(server, report):
    _note("zd_reload_finished", report=report)
"""


@PRELOAD
def test_zd_hooks_are_called(start: Start, site: Site, preload: bool) -> None:
    server = start(workers=2, preload_app=preload, extra=OUR_HOOKS)
    server.reload("two")
    assert_by_master(server, "zd_worker_ready", "zd_reload_started")
    ready = [(event["slot"], event["generation"]) for event in site.events("zd_worker_ready")]
    assert sorted(ready) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert {event["pid"] for event in site.events("zd_worker_ready")} >= set(server.workers())
    (done,) = wait_for(lambda: site.events("zd_reload_finished"), BOOT_TIMEOUT_S, "the reload is done")
    assert (done["report"]["result"], done["report"]["generation"]) == ("done", 2)
    unique = site.break_("raise")
    server.signal(signal.SIGUSR2)
    wait_for(lambda: len(site.events("zd_reload_finished")) == 2, BOOT_TIMEOUT_S, "the reload has failed")
    failed = site.events("zd_reload_finished")[-1]["report"]
    cost = "handed_over", "told_to_close", "cut_requests", "closed_websockets", "cut_paths"
    assert list(failed) == [
        "result",
        "generation",
        "started_at",
        "duration_s",
        "error",
        "traceback",
        *cost,
        "label",
        "rollback",
        "judgement",
    ]
    assert failed["result"] == "failed"
    assert unique in failed["traceback"]
    assert len(site.events("zd_reload_started")) == 2


def test_zd_hooks_that_raise_hurt_nothing(start: Start, site: Site) -> None:
    raising = re.sub(r"_note\(.*", "raise SystemExit(7)", OUR_HOOKS)
    server = start(workers=2, extra=raising)
    server.reload("two")
    said = "raised; the master continues"
    wait_for(lambda: server.log.count(said) == 2 * 2 + 2, BOOT_TIMEOUT_S, "each of them is in the log")
    assert server.stop() == 0


JOINS_A_THREAD = """
import threading

def _until_it_leaves(worker):
    while not worker.zd_leaving:
        _time.sleep(0.05)

def post_worker_init(worker):
    worker.zd_thread = threading.Thread(target=_until_it_leaves, args=(worker,))
    worker.zd_thread.start()
    _note("post_worker_init", pid=worker.pid)
    if worker.slot == 1:
        _time.sleep(600)

def worker_exit(server, worker):
    worker.zd_thread.join()
    _note("worker_exit", pid=worker.pid)
"""


def test_a_worker_that_ends_while_it_boots_is_leaving_too(make_server: Start, site: Site) -> None:
    """A hook that waits for a thread of its own would hold it up until it is killed."""
    server = make_server(workers=2, graceful_timeout=30, extra=JOINS_A_THREAD)
    server.launch()
    wait_for(lambda: len(site.events("post_worker_init")) == 2, BOOT_TIMEOUT_S, "one is ready, the other one boots")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert len(site.events("worker_exit")) == 2

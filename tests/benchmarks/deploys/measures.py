"""What is done to a contender: deploys under each load and each storm, without load, a broken deploy, a crash.

Rules:

* Each measurement has a server of its own, so that none inherits what another one broke.
* What does not come about within its time is reported as such, and the measuring goes on.
"""

from __future__ import annotations

import functools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from tests.benchmarks.deploys.applications import BURN
from tests.benchmarks.deploys.contenders import Contender, Style
from tests.benchmarks.deploys.figures import (
    AFTER,
    Deploy,
    Hurt,
    Loaded,
    Quiet,
    Report,
    Storm,
    course,
    outside,
    span,
    turn,
)
from tests.benchmarks.deploys.loads import TITLES, Seen, Traffic
from tests.benchmarks.deploys.servers import Lost, Server, serve
from tests.benchmarks.deploys.storms import TOOLS, storm
from tests.benchmarks.trees import Watch, cpu, pss

PARTS = (*TITLES, *TOOLS, "memory", "faulty", "broken")


@dataclass(frozen=True)
class Size:
    """How much is done; seconds, but ``workers`` and ``deploys``."""

    workers: int = 4
    deploys: int = 3
    before: float = 5.0
    between: float = 1.0
    patience: float = 60.0
    """For a deploy to be over."""
    watched: float = 6.0
    """After a broken deploy, and after a crash."""
    hurt: float = 30.0
    """From the signal on, when code is deployed that fails a part of its requests."""
    requests: int = 100_000
    """Of ``ab``."""
    storm: int = 20
    """Of ``wrk``, with the deploy; half of it before, without one."""


FULL = Size()
FAILED = (Lost, OSError, ValueError, AssertionError, subprocess.SubprocessError)
"""What may come of a contender that does not do what it should: the others are measured all the same."""
QUICK = Size(
    workers=2, deploys=1, before=1.0, between=0.5, patience=20.0, watched=4.0, hurt=15.0, requests=10_000, storm=6
)


@dataclass(frozen=True)
class Timeline:
    """What a picture is drawn from: a load from its begin to its end, and its deploys."""

    seen: Seen
    begin: float
    end: float
    deploys: list[Deploy]


def deploy(server: Server, version: str, old: set[int], patience: float) -> Deploy:
    """Tell the server and wait until the deploy is over and the ``old`` workers are gone, or it has taken too long."""
    lost, over = "", None
    told = time.monotonic()
    try:
        server.deploy(version)
        over = server.settled(version, old, patience)
    except (Lost, OSError) as error:
        lost = str(error)
    time.sleep(AFTER)
    return Deploy(version, told, over, time.monotonic(), lost)


def loaded(contender: Contender, style: Style, size: Size) -> tuple[Loaded, Timeline]:
    """Deploys of code whose import is a second of work, under one load."""
    crowd = style == "crowd"
    with serve(contender.keeping() if crowd else contender, size.workers, "import", crowd) as server:
        old = server.pids("1")
        traffic = Traffic(style, server.port)
        try:
            time.sleep(1)  # the first requests make connections and warm everything up
            begin = time.monotonic()
            time.sleep(size.before)
            deploys: list[Deploy] = []
            work_s = _second_of_work() if crowd else None
            number_of_deploys = 1 if crowd else size.deploys
            for number in range(number_of_deploys):
                version = f"{number + 2}"
                server.write(version, "import")
                deploys.append(deploy(server, version, old, size.patience))
                if deploys[-1].lost or number == number_of_deploys - 1:
                    break  # the next one would go to a server in an unknown state
                old = server.pids(version)
                time.sleep(size.between)
        finally:
            seen = traffic.stop()
        end = time.monotonic()
    turns = [turn(seen, each, size.workers) for each in deploys]
    told = Loaded(span(seen, begin, deploys[0].told), turns, seen.closed, outside(seen, turns))
    if seen.reconnects is not None:
        told = replace(told, reconnects=len(seen.reconnects), course=course(seen, deploys[0]), work_s=work_s)
    return told, Timeline(seen, begin, end, deploys)


def _second_of_work() -> float:
    """Return how long a second of processor time takes now: a busy machine makes each deploy as much longer."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import time\n{BURN}"], check=True, timeout=60)
    return time.monotonic() - began


def quiet(contender: Contender, size: Size) -> Quiet:
    """Deploys of code that imports 150 MB, without load: processor time and memory."""
    with serve(contender, size.workers, "large") as server:
        old = server.pids("1")
        time.sleep(1)
        before = pss(server.tree())
        seconds, costs, peaks, after = list[float](), list[float](), list[int](), list[int]()
        lost, curve = "", list[tuple[float, int]]()
        for number in range(size.deploys):
            version = f"{number + 2}"
            server.write(version, "large")
            began = _cpu(server)
            with Watch(server.keeper) as watch:
                done = deploy(server, version, old, size.patience)
            curve = curve or [(round(moment - done.told, 2), held) for moment, held in watch.samples]
            if done.over is None:
                lost = done.lost
                break
            costs.append(_cpu(server) - began)
            seconds.append(done.over - done.told)
            peaks.append(watch.peak())
            after.append(pss(server.tree()))
            old = server.pids(version)
            time.sleep(size.between)
    return Quiet(costs, seconds, before, peaks, after, lost, curve)


def _cpu(server: Server) -> float:
    return cpu([server.keeper, *server.tree()])


def hurt(contender: Contender, size: Size) -> Hurt:
    """What clients notice of a deploy of code that starts well, and answers every fifth request with 500."""
    with serve(contender, size.workers, "import", judged=True) as server:
        traffic = Traffic("new", server.port)
        try:
            time.sleep(size.before)
            server.write("2", "faulty")
            told = time.monotonic()
            try:
                server.deploy("2")
            finally:
                time.sleep(max(0.0, told + size.hurt - time.monotonic()))
        finally:
            seen = traffic.stop()
        answering = sorted({answer[0] for answer in server.look(3 * size.workers) if answer})
    answers = [answer for answer in seen.answers if answer.time >= told]
    failures = [failure.time - told for failure in seen.failures if failure.time >= told]
    return Hurt(len(answers), len(failures), size.hurt, max(failures, default=None), ", ".join(answering) or "none")


def broken(contender: Contender, size: Size) -> str:
    """What follows when the code that is deployed raises."""
    with serve(contender, size.workers, "trivial") as server:
        server.write("broken", "broken")
        error = ""
        try:
            if contender.how.startswith("USR2 +"):
                os.kill(server.main, signal.SIGUSR2)  # nobody would end the first master for a second that failed
            else:
                server.deploy("broken")
        except (Lost, OSError) as caught:
            error = f"; {caught}"
        return _watched(server, size.watched) + error


def crash(contender: Contender, size: Size) -> str:
    """What follows when a worker is killed while the files on disk are broken, with nobody having deployed."""
    with serve(contender, size.workers, "trivial") as server:
        server.write("broken", "broken")
        os.kill(min(server.pids("1")), signal.SIGKILL)
        return _watched(server, size.watched)


def _watched(server: Server, seconds: float) -> str:
    """Who answers in the ``seconds`` that follow, in a few words."""
    failed: Counter[bool] = Counter()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        failed[server.try_get() is None] += 1
        time.sleep(0.05)
    answers = [answer for _ in range(4) for answer in server.look(3 * server.workers) if answer]
    alive = len({pid for _, pid in answers})
    lost = f"{failed[True]} of {failed.total()} requests failed"
    if not answers:
        return f"down; {lost}"
    return f"version {', '.join(sorted({version for version, _ in answers}))} from {alive} of {server.workers}; {lost}"


def report(
    contender: Contender, size: Size, wanted: tuple[str, ...], say: Callable[[str], None]
) -> tuple[Report, dict[str, Timeline]]:
    """Measure all of a contender; also what its pictures are drawn from, by load.

    :param wanted: of :data:`PARTS`.
    """
    begun = Report(
        name=contender.name,
        title=contender.title,
        how=contender.how,
        command=_shown(contender, size),
        source=contender.source,
        version=contender.version(),
        missing=contender.missing(),
        taken=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, load average {os.getloadavg()[0]:.2f}",
    )
    if begun.missing:
        return begun, {}
    problems: list[str] = []
    loads, timelines = dict[str, Loaded](), dict[str, Timeline]()
    storms, rest = dict[str, Storm](), dict[str, Any]()

    def under(style: Style) -> None:
        loads[style], timelines[style] = loaded(contender, style, size)

    def stormed(name: str, much: int) -> None:
        storms[name] = storm(contender, name, much, size.workers, size.patience)

    parts: dict[str, Callable[[], object]] = {style: functools.partial(under, style) for style in contender.loads}
    parts |= {"ab": lambda: stormed("ab", size.requests), "wrk": lambda: stormed("wrk", size.storm)}
    parts["memory"] = lambda: rest.update(quiet=quiet(contender, size))
    parts["faulty"] = lambda: rest.update(hurt=hurt(contender, size))
    parts["broken"] = lambda: rest.update(broken=broken(contender, size), crash=crash(contender, size))
    for name in (name for name in parts if name in wanted):
        say(f"  {name}")
        try:
            parts[name]()
        except FAILED as error:
            problems.append(f"{name}: {type(error).__name__} {error}")
    return replace(begun, loads=loads, storms=storms, problems=problems, **rest), timelines


def _shown(contender: Contender, size: Size) -> str:
    words = " ".join(word.rpartition("/")[2] for word in contender.command)
    return words.replace("@PORT@", "8000").replace("@WORKERS@", str(size.workers))


def middle(timeline: Timeline) -> Deploy:
    """The deploy that took the median time: it is the one to be drawn."""
    over = [each for each in timeline.deploys if each.over is not None] or timeline.deploys
    wanted = statistics.median_low([each.end - each.told for each in over])
    return next(each for each in over if each.end - each.told == wanted)

"""What ``zdworker history`` shows: an entry is a line with the moment and the result, and below it who and why.

Rules: what the master has sent is made printable. Moments are in UTC, as in the log of the command's other answers. The
newest entry is the last one, where a terminal shows it.
"""

from __future__ import annotations

import pwd
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from zdworker import texts

INDENT = " " * 4

NOTHING = "no reload, rollback, crash or upgrade is known"


def lines(entries: list[dict[str, Any]], width: int) -> Iterator[str]:
    """Yield the lines of all entries, none longer than ``width`` characters if words allow that."""
    if not entries:
        yield NOTHING
        return
    yield f"{'when (UTC)':19}  {'what':8}  result"
    for entry in entries:
        yield from _wrapped(_head(entry), width, "")
        for text in (_who(entry["by"]), "; ".join(cost(entry)), _why(entry)):
            if text:
                yield from _wrapped(text, width, INDENT)


def cost(values: Mapping[str, Any]) -> list[str]:
    """Return what a reload has cost, in words; nothing of what did not happen.

    :param values: may lack ``cut_paths``, which an older master does not send.
    """
    costs = (
        ("handed_over", "connection", "handed over"),
        ("told_to_close", "connection", "told to close"),
        ("closed_websockets", "WebSocket", "closed"),
        ("cut_requests", "request", "cut at graceful_timeout"),
    )
    found = [f"{texts.counted(values[name], noun)} {what}" for name, noun, what in costs if values[name]]
    if values["cut_requests"]:
        found[-1] += texts.named(values["cut_requests"], [texts.line(path) for path in values.get("cut_paths", ())])
    return found


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    # A path is not cut in the middle, so that it can be copied.
    return textwrap.wrap(
        texts.lines(text).replace("\n", " "),
        width,
        initial_indent=indent,
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _head(entry: Mapping[str, Any]) -> str:
    moment = entry["at"].partition(".")[0].replace("T", " ")
    label = f" ({entry['label']})" if entry["label"] else ""
    facts = [f"generation {entry['generation']}{label}"]
    if entry["kind"] == "crash":
        facts.append(f"slot {entry['slot']}")
        if entry["times"] > 1:
            facts.append(f"{entry['times']} times in {entry['duration_s']:.0f} s")
    else:
        facts.insert(0, entry["result"] or "under way")
        if entry["duration_s"] is not None:
            facts.append(f"{entry['duration_s']:.1f} s")
    return f"{moment:19}  {entry['kind']:8}  {', '.join(facts)}"


def _who(requesters: list[dict[str, Any]]) -> str:
    return f"by {' and '.join(map(_requester, requesters))}" if requesters else ""


def _requester(who: Mapping[str, Any]) -> str:
    if who["signal"] is not None:
        return f"signal {who['signal']}"
    if who["uid"] is None:
        return "an unknown process"
    try:
        user = f"{pwd.getpwuid(who['uid']).pw_name} (uid {who['uid']})"
    except (KeyError, OverflowError):
        user = f"uid {who['uid']}"
    pid = f" (pid {who['pid']})" if who["pid"] is not None else ""
    return f"{user} with {who['command'] or 'an unknown command'}{pid}"


def _why(entry: Mapping[str, Any]) -> str:
    if entry["kind"] == "crash":
        return f"worker {entry['pid']} {entry['error']}"
    return str(entry["error"] or "")

"""A line in a chat for each reload, by an incoming webhook (Slack, Mattermost): for the end of gunicorn.conf.py."""

import json
import os
import threading
import urllib.request


def zd_reload_finished(server, report):
    url = os.environ.get("CHAT_WEBHOOK_URL")
    if url and report["result"] != "superseded":  # the newer reload sends its own message
        # In a thread: hooks run in the master's loop, and a server that does not answer would hold it up.
        threading.Thread(target=_post, args=(server.log, url, _sentence(report)), daemon=True).start()


def _sentence(report):
    name = f"generation {report['generation']}" + (f" ({report['label']})" if report["label"] else "")
    what = "Rollback" if report["rollback"] else "Deploy"
    if report["result"] == "done":
        cut = f", {report['cut_requests']} requests were cut" if report["cut_requests"] else ""
        return f"{what}: {name} serves, after {report['duration_s']:.1f} s{cut}"
    if report["result"] == "rolled_back":
        return f"{what} undone: {name} is not used"
    return f"{what} failed: {name}: {report['error']}\nThe code before serves."


def _post(log, url, text):
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10):
            pass
    except Exception as error:
        log.warning("The chat was not told of the reload: %s", error)

"""A release and a deploy in Sentry for each reload that is done: for the end of gunicorn.conf.py."""

import json
import os
import threading
import urllib.parse
import urllib.request


def zd_reload_finished(server, report):
    # Without a version (zd_version) there is nothing that errors could be assigned to.
    if os.environ.get("SENTRY_AUTH_TOKEN") and report["result"] == "done" and report["label"]:
        # In a thread: hooks run in the master's loop, and a server that does not answer would hold it up.
        threading.Thread(target=_deploy, args=(server.log, report), daemon=True).start()


def _deploy(log, report):
    releases = "{}/api/0/organizations/{}/releases/".format(
        os.environ.get("SENTRY_URL", "https://sentry.io"), os.environ["SENTRY_ORG"]
    )
    version = report["label"]
    deploy = {"environment": os.environ.get("SENTRY_ENVIRONMENT", "production"), "dateStarted": report["started_at"]}
    try:
        _post(releases, {"version": version, "projects": [os.environ["SENTRY_PROJECT"]]})
        _post(f"{releases}{urllib.parse.quote(version, safe='')}/deploys/", deploy)
    except Exception as error:
        log.warning("Sentry was not told of release %s: %s", version, error)


def _post(url, value):
    headers = {"Authorization": f"Bearer {os.environ['SENTRY_AUTH_TOKEN']}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(value).encode(), headers)
    with urllib.request.urlopen(request, timeout=10):
        pass

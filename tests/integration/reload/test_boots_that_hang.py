"""A boot that hangs: where it does stands in the log."""

from __future__ import annotations

from tests.harness.application_site import Site
from tests.harness.processes import wait_for
from tests.harness.server import Start
from tests.harness.worker_classes import ASGI, THREAD, UVICORN, WorkerClass, for_each


@for_each((UVICORN, ASGI, THREAD))
def test_a_worker_that_hangs_at_import_writes_its_stack(start_class: Start, site: Site, worker: WorkerClass) -> None:
    server = start_class(worker, workers=1, zd_preload="never", zd_boot_timeout=3)
    site.break_("hang")
    server.signal(server.reload_signal)
    wait_for(lambda: "it writes its stack, and is killed" in server.log, 30, "the worker has had its time")
    wait_for(lambda: "most recent call first" in server.log, 10, "its stack is in the log")
    stack = server.log.partition("most recent call first")[2]
    assert "app.py" in stack.partition("gunicorn")[0], "the application's frames are on top"
    wait_for(lambda: set(server.versions().values()) == {"one"}, 10, "the old code serves")

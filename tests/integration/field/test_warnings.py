"""No warning comes from zdworker itself: what a new Python deprecates, it takes away some versions later."""

from __future__ import annotations

from tests.harness.server import Start
from tests.harness.worker_classes import ALL, WorkerClass, for_each

ERRORS = """
import warnings

warnings.filterwarnings("error", module="zdworker")
"""


@for_each(ALL)
def test_warnings_of_zdworker_as_errors(start_class: Start, worker: WorkerClass) -> None:
    """In the master, the fork server and the workers, all of which read this configuration."""
    server = start_class(worker, workers=1, extra=ERRORS)
    server.reload("two")
    assert server.get()["version"] == "two"
    assert server.stop() == 0
    assert "Traceback" not in server.log

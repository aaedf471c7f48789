"""Handlers that block the event loop, as blocking code in ``async def`` does, while their worker has to leave."""

from __future__ import annotations

import os
import signal

from tests.harness.application_site import Site
from tests.harness.clients import Client, request
from tests.harness.control_client import worker_states
from tests.harness.processes import alive, wait_for
from tests.harness.server import BOOT_TIMEOUT_S, Start
from tests.harness.worker_classes import ASGI, TORNADO, UVICORN, UVICORN_H11, WorkerClass, for_each

BLOCKING = """

def _block(query):
    mark("request", path="/block")
    endpoints.wait_for_release()
    return {}


endpoints.at_once["/block"] = _block
if "Shared" in globals():
    app.add_handlers(".*", [("/block", Shared)])
"""


@for_each((UVICORN, UVICORN_H11, ASGI, TORNADO))
def test_the_answer_of_a_handler_that_blocked_the_loop_ends_its_connection(
    start_class: Start, site: Site, worker: WorkerClass
) -> None:
    """The loop notices that the worker is to leave when the handler has returned, and its answer is written by then."""
    site.deploy("one", extra=BLOCKING)
    server = start_class(worker, workers=1, keepalive=60, zd_hand_over=False)
    wait_for(lambda: worker_states(server) == ["ready"], BOOT_TIMEOUT_S, "the worker is ready")
    (pid,) = server.workers()
    with Client(server.address) as client:
        client.send(request("GET", "/block"))
        wait_for(lambda: site.marks("request"), BOOT_TIMEOUT_S, "the application has the request")
        os.kill(pid, signal.SIGTERM)
        site.answer_held()
        reply = client.reply()
        assert reply.status == 200
        assert reply.last
        client.wait_end()
    wait_for(lambda: not alive(pid), BOOT_TIMEOUT_S, "nothing holds the worker")

"""The corpus of raw requests: byte by byte as with stock, in service, in a drain, and with a health path."""

from __future__ import annotations

from tests.harness.server import Server
from tests.suites.conftest import Run, compare
from tests.suites.raw_requests import CORPUS, HEALTH, HEALTH_PATH
from tests.suites.transcripts import Transcript, begin, of_corpus, transcripts
from tests.suites.variants import VARIANTS, Variant, for_each

SUITE = "raw HTTP"
UNCONDITIONAL = [case for case in CORPUS if not case.converses]


def in_drain(server: Server, variant: Variant) -> dict[str, Transcript]:
    """Begin each case, begin a drain, and play the rest."""
    address = server.reserved.getsockname()
    with server.reload_at_the_end("two"):
        begun = [begin(address, case) for case in UNCONDITIONAL]
        server.wait_taken()
    return {name: found.in_drain() for name, found in transcripts(begun, variant.at_once).items()}


@for_each(VARIANTS)
def test_as_stock_in_each_state(run: Run, variant: Variant) -> None:
    server = run(stock=True)
    address = server.reserved.getsockname()
    stock = of_corpus(address, CORPUS, variant.at_once)
    after_a_byte = of_corpus(address, UNCONDITIONAL, variant.at_once, byte_first=True)
    server.end()

    server = run(stock=False)
    steady = of_corpus(server.reserved.getsockname(), CORPUS, variant.at_once)
    complaints = compare(variant, SUITE, "steady", stock, steady)
    server.end()

    server = run(stock=False, zd_health_path=HEALTH_PATH)
    address = server.reserved.getsockname()
    complaints += compare(variant, SUITE, "health path", stock, of_corpus(address, CORPUS, variant.at_once))
    for name, found in of_corpus(address, HEALTH, variant.at_once).items():
        body = b"" if name.startswith("health HEAD") else b"ok\n"
        if b" 200 OK\r\n" not in found.received[:20] or not found.received.endswith(b"\r\n\r\n" + body):
            complaints.append(f"{name}: {found}")
    server.end()

    server = run(stock=False, preload_app=True, keepalive=20)
    expected = {name: found.in_drain() for name, found in after_a_byte.items()}
    complaints += compare(variant, SUITE, "draining", expected, in_drain(server, variant))
    assert complaints == []


def test_names_are_unique() -> None:
    names = [case.name for case in (*CORPUS, *HEALTH)]
    assert len(set(names)) == len(names) > 400

"""An HTTP/2 client on a plain socket that shows the frames that matter at a drain: answers and GOAWAY.

Rules:

* It never closes by itself and tries nothing again: what a test sees is what the server did.
* Nothing of the server's code is used; h2 (hyper) speaks the protocol.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.harness.clients import CLIENT_TIMEOUT_S, Address, trusting

HEAD = 9
"""Bytes of a frame's head (RFC 9113 4.1): a length of three bytes, the type, flags, the stream."""
GOAWAY = 7


@dataclass
class Stream:
    """What came on one stream."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    reset: bool = False

    def json(self) -> dict[str, Any]:
        plain = json.loads(self.body)
        assert isinstance(plain, dict)
        return plain


class Http2Client:
    """One connection.

    :param tls: False: in clear text, with prior knowledge.
    """

    def __init__(self, address: Address, *, tls: bool = True) -> None:
        assert not isinstance(address, str)
        self.socket = socket.create_connection(address, CLIENT_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = trusting()
            context.set_alpn_protocols(["h2"])
            encrypted = context.wrap_socket(self.socket)
            assert encrypted.selected_alpn_protocol() == "h2"
            self.socket = encrypted
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.streams: dict[int, Stream] = {}
        self.goaways: list[tuple[int, int]] = []
        """The last stream and the error code of each GOAWAY."""
        self.acknowledging = True
        """Whether what is read is acknowledged: settings and PING."""
        self._pending = b""
        self.flush()

    def __del__(self) -> None:
        """Close it, as the end of a client's process does."""
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def request(self, method: str, path: str, *, end: bool = True) -> int:
        """Open a stream; return its number."""
        number = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "localhost")]
        self.streams[number] = Stream()
        self.h2.send_headers(number, pseudo, end_stream=end)
        self.flush()
        return number

    def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(number, data, end_stream=end)
        self.flush()

    def get(self, path: str) -> Stream:
        """Return the answer to one request."""
        return self.answer(self.request("GET", path))

    def answer(self, number: int) -> Stream:
        """Return the whole answer on a stream."""
        self.until(lambda: self.streams[number].whole or self.streams[number].reset, "an answer")
        return self.streams[number]

    def until(self, fact: Callable[[], object], what: str) -> None:
        """Read until ``fact``.

        :raises AssertionError: the connection ended before.
        """
        while not fact():
            assert self.read(), f"the connection has ended without {what}: {self.goaways}"

    def until_end(self) -> None:
        """Read until the server closes."""
        while self.read():
            pass

    def read_for(self, seconds: float) -> None:
        """Read what comes within ``seconds``."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                assert self.read(), f"the connection has ended: {self.goaways}"
        self.socket.settimeout(CLIENT_TIMEOUT_S)

    def read(self) -> bool:
        """Take in what comes next; False: the server has closed."""
        data = self.socket.recv(65536)
        self._pending += data
        while len(self._pending) >= HEAD and len(self._pending) >= (
            size := HEAD + int.from_bytes(self._pending[:3], "big")
        ):
            frame, self._pending = self._pending[:size], self._pending[size:]
            if frame[3] == GOAWAY:  # not for h2, which would take a shutdown notice for the end
                self.goaways.append(struct.unpack(">II", frame[HEAD : HEAD + 8]))
                continue
            for event in self.h2.receive_data(frame):
                self._take(event)
        if data and self.acknowledging:
            self.flush()
        return bool(data)

    def _take(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None)
        stream = self.streams.get(number or 0)
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            pairs = [(str(name), str(value)) for name, value in event.headers]
            stream.headers = dict(pairs)
            stream.status = int(stream.headers[":status"])
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            stream.whole = True
        elif isinstance(event, h2.events.StreamReset):
            stream.reset = True

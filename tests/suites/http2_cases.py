"""Cases for HTTP/2 servers, by the sections of RFC 9113, as h2spec has them (which is no package of PyPI or Debian).

Rules: a case is what a client sends behind its TLS handshake, in raw frames. Names begin with the section.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import hpack

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Fields = list[tuple[str, str]]
GET: Fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "test")]
POST: Fields = [(":method", "POST"), *GET[1:]]


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0, length: int | None = None) -> bytes:
    """Return one frame (RFC 9113 4.1)."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(fields: Fields) -> bytes:
    return bytes(hpack.Encoder().encode(fields, huffman=False))


def headers(fields: Fields = GET, *, stream: int = 1, flags: int = END_HEADERS | END_STREAM) -> bytes:
    return frame(HEADERS, block(fields), flags=flags, stream=stream)


def setting(identifier: int, value: int) -> bytes:
    return frame(SETTINGS, struct.pack(">HI", identifier, value))


BEGUN = PREFACE + frame(SETTINGS)
OPEN = headers(POST, flags=END_HEADERS)
"""A request whose body is to come."""
CANCEL = frame(RST_STREAM, struct.pack(">I", 8), stream=1)

Sent = tuple[str, bytes]


def _connection() -> Iterator[Sent]:
    yield "3.4 preface and a request", BEGUN + headers()
    yield "3.4 a wrong preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + frame(SETTINGS) + headers()
    yield "3.4 no settings", PREFACE + headers()
    yield "3.4 ping before the settings", PREFACE + frame(PING, bytes(8)) + headers()
    yield "4.1 an unknown type", BEGUN + frame(0x16, b"unknown") + headers()
    yield "4.1 an unknown type on a stream", BEGUN + OPEN + frame(0x16, b"a", stream=1) + frame(DATA, flags=1, stream=1)
    yield "4.1 unknown flags", BEGUN + frame(PING, b"12345678", flags=0x16) + headers()
    yield "4.1 the reserved bit", BEGUN + frame(PING, b"12345678", stream=1 << 31) + headers()
    yield "4.2 DATA of 16,384", BEGUN + OPEN + frame(DATA, bytes(16384), flags=END_STREAM, stream=1)
    yield "4.2 DATA of 16,385", BEGUN + OPEN + frame(DATA, bytes(16385), flags=END_STREAM, stream=1)
    yield "4.2 HEADERS too large", BEGUN + headers([*GET, ("a", "b" * 17000)])
    yield "4.3 a block that cannot be decoded", BEGUN + frame(HEADERS, b"\x8f\xff\xff\xff\xff\xff", flags=5, stream=1)
    yield "4.3 an index that is not there", BEGUN + frame(HEADERS, b"\xff\x80\x01", flags=5, stream=1)
    yield "4.3 a block cut short", BEGUN + frame(HEADERS, block(GET)[:-3], flags=5, stream=1)
    yield "4.3 PRIORITY between", BEGUN + headers(flags=1) + frame(PRIORITY, bytes(5), stream=1)
    yield "4.3 another stream between", BEGUN + headers(flags=1) + headers(stream=3)


def _streams() -> Iterator[Sent]:
    yield "5.1 idle: DATA", BEGUN + frame(DATA, b"a", flags=1, stream=1)
    yield "5.1 idle: RST_STREAM", BEGUN + frame(RST_STREAM, bytes(4), stream=1)
    yield "5.1 idle: WINDOW_UPDATE", BEGUN + frame(WINDOW_UPDATE, struct.pack(">I", 100), stream=1)
    yield "5.1 idle: CONTINUATION", BEGUN + frame(CONTINUATION, block(GET), flags=4, stream=1)
    yield "5.1 idle: PRIORITY", BEGUN + frame(PRIORITY, struct.pack(">IB", 0, 15), stream=5) + headers()
    for name, late in {
        "DATA": frame(DATA, b"a", flags=1, stream=1),
        "HEADERS": headers(),
        "CONTINUATION": frame(CONTINUATION, block(GET), flags=4, stream=1),
        "PRIORITY": frame(PRIORITY, struct.pack(">IB", 0, 15), stream=1),
        "WINDOW_UPDATE": frame(WINDOW_UPDATE, struct.pack(">I", 100), stream=1),
        "RST_STREAM": frame(RST_STREAM, struct.pack(">I", 8), stream=1),
    }.items():
        yield f"5.1 ended by the client: {name}", BEGUN + headers() + late
        yield (
            f"5.1 reset by the client: {name}",
            BEGUN + OPEN + frame(RST_STREAM, struct.pack(">I", 8), stream=1) + late,
        )
    yield "5.1.1 an even stream", BEGUN + headers(stream=2)
    yield "5.1.1 a smaller stream", BEGUN + headers(stream=5) + headers(stream=3)
    yield "5.1.1 ten streams", BEGUN + b"".join(headers(stream=number) for number in range(1, 21, 2))
    yield (
        "5.3.1 HEADERS that depend on themselves",
        BEGUN
        + frame(
            HEADERS, struct.pack(">IB", 1, 15) + block(GET), flags=END_HEADERS | END_STREAM | WITH_PRIORITY, stream=1
        ),
    )
    yield (
        "5.3.1 PRIORITY that depends on itself",
        BEGUN + frame(PRIORITY, struct.pack(">IB", 1, 15), stream=1) + headers(),
    )
    yield "5.5 an unknown frame in a block", BEGUN + headers(flags=1) + frame(0x16, b"a", stream=1)


def _frames() -> Iterator[Sent]:
    yield "6.1 DATA on stream 0", BEGUN + frame(DATA, b"a")
    yield "6.1 padding", BEGUN + OPEN + frame(DATA, b"\x03abc\x00\x00\x00", flags=PADDED | END_STREAM, stream=1)
    yield "6.1 too much padding", BEGUN + OPEN + frame(DATA, b"\x09abc", flags=PADDED | END_STREAM, stream=1)
    yield "6.1 DATA in pieces", BEGUN + OPEN + frame(DATA, b"a", stream=1) * 5 + frame(DATA, b"", flags=1, stream=1)
    yield "6.2 HEADERS on stream 0", BEGUN + headers(stream=0)
    yield "6.2 padding", BEGUN + frame(HEADERS, b"\x02" + block(GET) + bytes(2), flags=PADDED | 5, stream=1)
    yield "6.2 too much padding", BEGUN + frame(HEADERS, b"\xf0" + block(GET), flags=PADDED | 5, stream=1)
    yield (
        "6.2 a priority",
        BEGUN + frame(HEADERS, struct.pack(">IB", 0, 15) + block(GET), flags=WITH_PRIORITY | 5, stream=1),
    )
    yield "6.3 PRIORITY on stream 0", BEGUN + frame(PRIORITY, bytes(5)) + headers()
    yield "6.3 PRIORITY of 4", BEGUN + frame(PRIORITY, bytes(4), stream=1) + headers(stream=3)
    yield "6.4 RST_STREAM on stream 0", BEGUN + frame(RST_STREAM, bytes(4))
    yield "6.4 RST_STREAM of 3", BEGUN + OPEN + frame(RST_STREAM, bytes(3), stream=1)
    yield "6.5 SETTINGS with an acknowledgement and a payload", BEGUN + frame(SETTINGS, bytes(6), flags=ACK)
    yield "6.5 SETTINGS on a stream", BEGUN + frame(SETTINGS, stream=1)
    yield "6.5 SETTINGS of 5", BEGUN + frame(SETTINGS, bytes(5))
    for name, (identifier, value) in {
        "ENABLE_PUSH of 2": (2, 2),
        "INITIAL_WINDOW_SIZE of 2^31": (4, 1 << 31),
        "MAX_FRAME_SIZE of 16,383": (5, 16383),
        "MAX_FRAME_SIZE of 2^24": (5, 1 << 24),
        "HEADER_TABLE_SIZE of 0": (1, 0),
        "MAX_CONCURRENT_STREAMS of 0": (3, 0),
        "an unknown one": (0xFF, 1),
        "INITIAL_WINDOW_SIZE of 10": (4, 10),
    }.items():
        yield f"6.5.2 {name}", PREFACE + setting(identifier, value) + headers()
    yield "6.5.3 two SETTINGS", BEGUN + setting(4, 100) + setting(4, 70_000) + headers()
    yield (
        "6.6 PUSH_PROMISE",
        BEGUN + headers() + frame(PUSH_PROMISE, struct.pack(">I", 2) + block(GET), flags=4, stream=1),
    )
    yield "6.7 PING", BEGUN + frame(PING, b"12345678")
    yield "6.7 PING with an acknowledgement", BEGUN + frame(PING, b"12345678", flags=ACK) + headers()
    yield "6.7 PING on a stream", BEGUN + frame(PING, b"12345678", stream=1)
    yield "6.7 PING of 6", BEGUN + frame(PING, b"123456")
    yield "6.8 GOAWAY", BEGUN + frame(GOAWAY, bytes(8))
    yield "6.8 GOAWAY on a stream", BEGUN + frame(GOAWAY, bytes(8), stream=1)
    yield "6.8 GOAWAY behind a request", BEGUN + headers() + frame(GOAWAY, bytes(8))
    yield "6.9 WINDOW_UPDATE of 0", BEGUN + frame(WINDOW_UPDATE, bytes(4))
    yield "6.9 WINDOW_UPDATE of 0 on a stream", BEGUN + OPEN + frame(WINDOW_UPDATE, bytes(4), stream=1)
    yield "6.9 WINDOW_UPDATE of 3 bytes", BEGUN + frame(WINDOW_UPDATE, bytes(3))
    yield "6.9.1 too large a window", BEGUN + frame(WINDOW_UPDATE, struct.pack(">I", 0x7FFFFFFF)) * 2
    yield (
        "6.10 CONTINUATION",
        BEGUN
        + frame(HEADERS, block(GET)[:5], flags=1, stream=1)
        + frame(CONTINUATION, block(GET)[5:], flags=END_HEADERS, stream=1),
    )
    yield "6.10 CONTINUATION on stream 0", BEGUN + headers(flags=1) + frame(CONTINUATION, b"", flags=4)
    yield "6.10 CONTINUATION behind a whole block", BEGUN + headers() + frame(CONTINUATION, b"", flags=4, stream=1)
    yield "7 RST_STREAM with an unknown code", BEGUN + OPEN + frame(RST_STREAM, struct.pack(">I", 0xFF), stream=1)
    yield "7 GOAWAY with an unknown code", BEGUN + frame(GOAWAY, struct.pack(">II", 0, 0xFF))


def _messages() -> Iterator[Sent]:
    for name, fields in {
        "upper case": [*GET, ("A", "b")],
        "an unknown pseudo field": [*GET, (":unknown", "a")],
        "a pseudo field of responses": [*GET, (":status", "200")],
        "a pseudo field behind others": [*GET[:3], ("a", "b"), GET[3]],
        "Connection": [*GET, ("connection", "keep-alive")],
        "TE: trailers": [*GET, ("te", "trailers")],
        "TE: gzip": [*GET, ("te", "gzip")],
        "Transfer-Encoding": [*GET, ("transfer-encoding", "chunked")],
        "an empty path": [*GET[:2], (":path", ""), GET[3]],
        "no method": GET[1:],
        "no scheme": [GET[0], *GET[2:]],
        "no path": [*GET[:2], GET[3]],
        "no authority": GET[:3],
        "two methods": [GET[0], *GET],
        "two paths": [*GET[:3], GET[2], GET[3]],
        "Host beside the authority": [*GET, ("host", "other")],
        "a NUL in a value": [*GET, ("a", "b\0c")],
        "a line feed in a value": [*GET, ("a", "b\nc")],
        "a space in a name": [*GET, ("a b", "c")],
        "cookies in two": [*GET, ("cookie", "a=b"), ("cookie", "c=d")],
        "OPTIONS *": [(":method", "OPTIONS"), GET[1], (":path", "*"), GET[3]],
        "a path with a query": [*GET[:2], (":path", "/a%20b?c=d"), GET[3]],
        "HEAD": [(":method", "HEAD"), *GET[1:]],
        "an application that fails": [*GET[:2], (":path", "/raise"), GET[3]],
        "an answer in pieces": [*GET[:2], (":path", "/stream"), GET[3]],
        "no content": [*GET[:2], (":path", "/204"), GET[3]],
    }.items():
        yield f"8 {name}", BEGUN + headers(fields)
    body = frame(DATA, b"hello", flags=END_STREAM, stream=1)
    yield "8.1 a body", BEGUN + OPEN + body
    for length in ("5", "4", "6", "x"):
        fields = [*POST, ("content-length", length)]
        yield f"8.1.1 a length of {length}", BEGUN + headers(fields, flags=END_HEADERS) + body
    trailers = frame(HEADERS, block([("a", "b")]), flags=END_HEADERS | END_STREAM, stream=1)
    yield "8.1 trailers", BEGUN + OPEN + frame(DATA, b"hello", stream=1) + trailers
    yield (
        "8.1 trailers with a pseudo field",
        BEGUN + OPEN + frame(HEADERS, block([(":method", "GET")]), flags=END_HEADERS | END_STREAM, stream=1),
    )
    yield (
        "8.1 a second HEADERS that ends nothing",
        BEGUN + OPEN + frame(HEADERS, block([("a", "b")]), flags=4, stream=1),
    )


CASES: dict[str, bytes] = {
    name: sent for group in (_connection, _streams, _frames, _messages) for name, sent in group()
}

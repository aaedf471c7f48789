"""Cases for WebSocket servers, by the sections of Autobahn's test suite (which needs Python 2, or Docker).

Rules: a case is the whole of what a client sends behind its handshake, in raw frames; the server echoes. Names begin
with Autobahn's section.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator

from tests.suites.raw_requests import ANSWER, PAUSE, SILENCE, Case

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80
RSV1 = 0x40
MASK_KEY = b"\x12\x34\x56\x78"

HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)

ANSWERED = {FIN | opcode for opcode in (CONTINUATION, TEXT, BINARY, PING)}
"""The first bytes of frames that something comes back for."""
LARGE = 60_000
"""Bytes from which on an answer may come in pieces."""
SMALLEST = 6
"""Bytes of a frame without a payload."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    """Return one frame (RFC 6455 5.2)."""
    first = (FIN if fin else 0) | reserved | opcode
    size, mask = len(payload), FIN if masked else 0
    if size < 126:
        head = struct.pack(">BB", first, mask | size)
    elif size < 65536:
        head = struct.pack(">BBH", first, mask | 126, size)
    else:
        head = struct.pack(">BBQ", first, mask | 127, size)
    if not masked:
        return head + payload
    key = (MASK_KEY * (size // 4 + 1))[:size]
    covered = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + MASK_KEY + covered.to_bytes(size, "big")


def text(payload: bytes, **bits: bool | int) -> bytes:
    return frame(TEXT, payload, **bits)  # type: ignore[arg-type]  # the bits of a frame, by name


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack(">H", code) + reason)


Sent = tuple[str, tuple[bytes, ...]]


def _framing() -> Iterator[Sent]:
    for section, opcode, letter in (("1.1", TEXT, b"*"), ("1.2", BINARY, b"\xfe")):
        for size in (0, 1, 125, 126, 127, 128, 65535, 65536, 1_000_000):
            yield f"{section} {size} bytes", (frame(opcode, letter * size),)
        whole = frame(opcode, letter * 70_000)
        yield f"{section} chopped", tuple(whole[at : at + 9973] for at in range(0, len(whole), 9973))
    byte_by_byte = text(b"hello")
    yield "1.1 a byte at a time", tuple(bytes([byte]) for byte in byte_by_byte)
    for name, head in {
        "126 for 5 bytes": struct.pack(">BBH", FIN | TEXT, FIN | 126, 5),
        "127 for 5 bytes": struct.pack(">BBQ", FIN | TEXT, FIN | 127, 5),
        "2^63 bytes": struct.pack(">BBQ", FIN | TEXT, FIN | 127, 1 << 63),
        "100 MB announced": struct.pack(">BBQ", FIN | TEXT, FIN | 127, 100_000_000),
    }.items():
        yield f"1.3 length {name}", (head + MASK_KEY + text(b"hello")[6:],)
    yield "1.4 not masked", (text(b"hello", masked=False),)


def _pings() -> Iterator[Sent]:
    for name, payload in {
        "empty": b"",
        "text": b"hello",
        "binary": b"\x00\xff\xfe",
        "125 bytes": b"\xfe" * 125,
    }.items():
        yield f"2 ping {name}", (frame(PING, payload),)
    yield "2.5 ping of 126 bytes", (frame(PING, b"\xfe" * 126),)
    yield "2.6 ping a byte at a time", tuple(bytes([byte]) for byte in frame(PING, b"\xfe" * 20))
    yield "2.7 pong", (frame(PONG),)
    yield "2.8 pong with a payload", (frame(PONG, b"unsolicited"),)
    yield "2.9 pong, ping", (frame(PONG, b"unsolicited"), frame(PING, b"asked"))
    yield "2.10 ten pings", tuple(frame(PING, b"%d" % number) for number in range(10))
    yield "2.11 ten pings at once", (b"".join(frame(PING, b"%d" % number) for number in range(10)),)
    yield "2.12 ping and text at once", (frame(PING, b"a") + text(b"b") + frame(PING, b"c"),)
    yield "2.13 ping that is not final", (frame(PING, b"a", fin=False),)


def _reserved() -> Iterator[Sent]:
    for bits in range(1, 8):
        yield f"3 reserved bits {bits}", (text(b"hello", reserved=bits << 4),)
        yield f"3 reserved bits {bits} behind text", (text(b"one"), text(b"two", reserved=bits << 4), frame(PING))
        yield f"3 reserved bits {bits} in a ping", (frame(PING, reserved=bits << 4),)
        yield f"3 reserved bits {bits} in a close", (frame(CLOSE, reserved=bits << 4),)


def _opcodes() -> Iterator[Sent]:
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        section = "4.1" if opcode < 8 else "4.2"
        yield f"{section} opcode {opcode}", (frame(opcode),)
        yield f"{section} opcode {opcode} with a payload", (frame(opcode, b"reserved"),)
        yield f"{section} opcode {opcode} behind text", (text(b"hello"), frame(opcode), frame(PING))


def _fragments() -> Iterator[Sent]:
    first, last = text(b"frag", fin=False), frame(CONTINUATION, b"ment")
    middle = frame(CONTINUATION, b"-", fin=False)
    ping = frame(PING, b"ping")
    yield "5.1 ping in two", (frame(PING, b"a", fin=False), frame(CONTINUATION, b"b"))
    yield "5.2 pong in two", (frame(PONG, b"a", fin=False), frame(CONTINUATION, b"b"))
    yield "5.3 text in two", (first, last)
    yield "5.4 text in two at once", (first + last,)
    yield "5.5 text in two, chopped", tuple((first + last)[at : at + 3] for at in range(0, len(first + last), 3))
    yield "5.6 ping between", (first, ping, last)
    yield "5.7 ping between at once", (first + ping + last,)
    yield "5.8 three with pings", (first, ping, middle, ping, last)
    yield "5.9 continuation of nothing", (frame(CONTINUATION, b"a"), text(b"hello"))
    yield "5.10 continuation of nothing at once", (frame(CONTINUATION, b"a") + text(b"hello"),)
    yield "5.12 open continuation of nothing", (frame(CONTINUATION, b"a", fin=False), text(b"hello"))
    yield "5.15 continuation behind a whole message", (first, last, middle, text(b"hello"))
    yield "5.16 continuation first", (middle, first, last)
    yield "5.18 two beginnings", (first, text(b"two"))
    yield "5.19 two whole messages with pings", (first, middle, ping, middle, ping, last, ping, first, last)
    yield "5.20 empty pieces", (text(b"", fin=False), frame(CONTINUATION, fin=False), frame(CONTINUATION))
    yield (
        "5.21 binary in ten",
        (
            frame(BINARY, b"0", fin=False),
            *(frame(CONTINUATION, b"%d" % number, fin=False) for number in range(1, 9)),
            frame(CONTINUATION, b"9"),
        ),
    )
    yield "5.22 close between", (first, close(), last)
    yield (
        "5.23 64 KB in 1,000 pieces",
        (
            text(b"*" * 64, fin=False)
            + b"".join(frame(CONTINUATION, b"*" * 64, fin=False) for _ in range(998))
            + frame(CONTINUATION, b"*" * 64),
        ),
    )


VALID = [
    *("κόσμε", "Hello-µ@ßöäüàá-UTF-8!!", "\u0000", "\u0080", "\u0800", "\U00010000", "\u007f", "\u07ff", "\uffff"),
    *("\ud7ff", "\ue000", "\ufffd", "\U0010ffff", "\ufffe", "\ufeff", "\U0001fffe", "\U0001ffff", "😀" * 20),
]
INVALID = [
    *(
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\x80",
        b"\xbf",
        b"\x80\xbf",
        b"\x80\xbf\x80",
    ),
    *(
        b"\xc0",
        b"\xc0 \xc1 ",
        b"\xe0 \xe1 ",
        b"\xf0 \xf1 ",
        b"\xf8 ",
        b"\xfc ",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xfe",
        b"\xff",
    ),
    *(b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xc0\x80"),
    *(
        b"\xed\xa0\x80",
        b"\xed\xad\xbf",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf7\xbf\xbf\xbf",
    ),
    *(
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xce",
        b"ok\xe2\x82ok",
        b"\xfe\xfe\xff\xff",
        b"\xc2\x41",
        b"\xe2\x28\xa1",
        b"\xf5\x80\x80\x80",
    ),
]


def _utf8() -> Iterator[Sent]:
    for number, (valid, data) in enumerate(
        [*((True, one.encode()) for one in VALID), *((False, one) for one in INVALID)], 1
    ):
        name = f"6 {'valid' if valid else 'invalid'} {number} {data[:12].hex(' ')}"
        yield name, (text(data),)
        yield (
            f"{name}, in pieces",
            tuple(
                frame(CONTINUATION if at else TEXT, data[at : at + 1], fin=at == len(data) - 1)
                for at in range(len(data))
            ),
        )
        yield f"{name}, in a close", (close(1000, data[:120]),)
        yield f"{name}, binary", (frame(BINARY, data),)
    cut = "κόσμε".encode()
    yield "6.4 fails fast", (text(cut + b"\xf4\x90", fin=False), frame(CONTINUATION, b"\x80\x80"), frame(PING))


def _closes() -> Iterator[Sent]:
    yield "7.1 text, close", (text(b"hello"), close())
    yield "7.1 two closes", (close(), close())
    yield "7.1 close, ping", (close(), frame(PING))
    yield "7.1 close, text", (close(), text(b"hello"))
    yield "7.1 close and text at once", (close() + text(b"hello"),)
    yield "7.1 text and close at once", (text(b"hello") + close(),)
    yield "7.1 256 KB, close", (text(b"*" * 262_144), close(), frame(PING))
    yield "7.3 empty", (close(None),)
    yield "7.3 one byte", (frame(CLOSE, b"a"),)
    yield "7.3 a reason", (close(1000, b"hello"),)
    yield "7.3 the longest reason", (close(1000, b"*" * 123),)
    yield "7.3 too long", (close(1000, b"*" * 124),)
    yield "7.5 invalid UTF-8", (close(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80"),)
    yield "7.6 close that is not final", (frame(CLOSE, fin=False),)
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999):
        yield f"7.7 code {code}", (close(code),)
    for code in (0, 1, 500, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield f"7.9 code {code}", (close(code),)
        yield f"7.9 code {code} with a reason", (close(code, b"hello"),)
    yield "7.13 no close", ()


def _limits() -> Iterator[Sent]:
    for size in (100_000, 500_000):
        yield f"9.1 {size} bytes of text", (text(b"*" * size),)
        pieces = itertools.chain([TEXT], itertools.repeat(CONTINUATION))
        steps = range(0, size, 64_000)
        yield (
            f"9.3 {size} bytes in pieces of 64 KB",
            (b"".join(frame(next(pieces), b"*" * min(64_000, size - at), fin=at == steps[-1]) for at in steps),),
        )
    yield "9.4 17 MB", (text(b"*" * 17_000_000),)
    yield "9.7 200 messages at once", (b"".join(text(b"%d" % number) for number in range(200)),)
    yield "9.8 200 messages", tuple(text(b"%d" % number) for number in range(200))


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def _compression() -> Iterator[tuple[str, bytes, tuple[bytes, ...]]]:
    for offer in (
        b"permessage-deflate",
        b"permessage-deflate; client_max_window_bits",
        b"permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        b"permessage-deflate; server_max_window_bits=10",
        b"permessage-deflate; server_max_window_bits=7",
        b"permessage-deflate; unknown",
        b"permessage-deflate; client_max_window_bits=10, permessage-deflate",
        b"x-webkit-deflate-frame",
    ):
        field = b"Sec-WebSocket-Extensions: " + offer + b"\r\n"
        name = offer.decode().replace("permessage-deflate", "pmd")
        yield f"12 {name}, text", field, (text(b"hello" * 100),)
        yield f"12 {name}, deflated", field, (text(_deflated(b"hello" * 100), reserved=RSV1),)
    pmd = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    half = _deflated(b"hello" * 100)
    yield "13 in two", pmd, (text(half[:4], reserved=RSV1, fin=False), frame(CONTINUATION, half[4:]))
    yield "13 the bit in a continuation", pmd, (text(b"a", fin=False), frame(CONTINUATION, half, reserved=RSV1))
    yield "13 garbage", pmd, (text(b"\xff\xff\xff\xff", reserved=RSV1),)
    yield "13 a bomb", pmd, (text(_deflated(bytes(50_000_000)), reserved=RSV1),)
    yield "13 a deflated ping", pmd, (frame(PING, _deflated(b"a"), reserved=RSV1),)
    yield "13 invalid UTF-8", pmd, (text(_deflated(b"\xff\xfe"), reserved=RSV1),)


def _case(name: str, frames: tuple[bytes, ...], field: bytes = b"") -> Case:
    """Make a case that waits for what a frame is answered with, and ends with a close, as Autobahn's client does.

    It waits behind the handshake as well: Gunicorn's own implementation may lose what comes right behind it.
    """
    steps: list[bytes | str] = [HANDSHAKE + field + b"\r\n", ANSWER, SILENCE]
    for sent in frames:
        answered = sent[0] in ANSWERED and len(sent) >= SMALLEST and "chopped" not in name
        steps += [sent, *((ANSWER, ANSWER, ANSWER, SILENCE) if len(sent) > LARGE else (ANSWER if answered else PAUSE,))]
    return Case(name, (*steps, SILENCE, *(() if name == "7.13 no close" else (close(),))))


GROUPS = (_framing, _pings, _reserved, _opcodes, _fragments, _utf8, _closes, _limits)
CASES: tuple[Case, ...] = (
    *(_case(name, frames) for group in GROUPS for name, frames in group()),
    *(_case(name, frames, field) for name, field, frames in _compression()),
)

"""The corpus of raw HTTP/1.1: what clients, proxies and attackers send, byte by byte.

Rules:

* Each case is the whole of what one client does on one connection: pieces to send, and waits between them.
* Its name says what is odd about it, and is unique: docs/reliability.md names cases by it.
* A request that may be followed by another is followed by ``/next``, so that a body of the wrong length shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

ANSWER: Final = "answer"
"""A step: wait until something has come."""
PAUSE: Final = "pause"
"""A step: wait for a moment, so that the next piece comes by itself."""
SILENCE: Final = "silence"
"""A step: wait until nothing has come for a second."""

NEXT = b"GET /next HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
HOST = b"Host: test\r\n"
END = b"Connection: close\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """One client.

    :param steps: bytes to send, :data:`ANSWER`, :data:`PAUSE` or :data:`SILENCE`.
    :param converses: it sends a further request only when it has an answer, so a drain ends it before that.
    """

    name: str
    steps: tuple[bytes | str, ...]
    converses: bool = False


def head(line: bytes, *fields: bytes, last: bytes = END) -> bytes:
    """Return a head with ``Host`` and, unless told otherwise, ``Connection: close``."""
    return line + b"\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + last


def post(*fields: bytes, body: bytes = b"", path: bytes = b"/") -> bytes:
    """Return a POST request that is followed by ``/next``."""
    return head(b"POST %b HTTP/1.1" % path, *fields, last=b"\r\n") + body + NEXT


def chunked(*pieces: bytes) -> bytes:
    """Return ``pieces`` as chunks, with the last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def shown(data: bytes, length: int = 40) -> str:
    """Return ``data`` as a part of a name: printable, without what tables and paths give a meaning."""
    text = data if len(data) <= length else data[:12] + b"... (%d)" % len(data)
    return repr(text)[2:-1].replace("|", "\\x7c").replace("`", "\\x60")


Named = tuple[str, bytes]


def _methods() -> Iterator[Named]:
    known = b"GET HEAD POST PUT DELETE OPTIONS PATCH TRACE CONNECT PROPFIND MKCOL REPORT M-SEARCH PURGE QUERY LINK PRI"
    odd = [b"get", b"Get", b"FOO", b"G3T", b"G@T", b"G T", b"", b" GET", b"\tGET", b"GE\x00T", b"G\xc3\x89T", b"G" * 30]
    for method in [*known.split(), *odd, b"G" * 300, b"{GET}", b'"GET"', b"GET:", b"A-B_C.D!~", b"1", b"#GET"]:
        yield f"method {shown(method)}", head(method + b" / HTTP/1.1")


def _targets() -> Iterator[Named]:
    targets = [
        *(
            b"/",
            b"//",
            b"///a",
            b"/a//b",
            b"/a/../b",
            b"/./a",
            b"/..",
            b"/../../etc/passwd",
            b"/a/",
            b"/a;p=1",
            b"/a,b",
        ),
        *(b"/%41", b"/%2F", b"/%2f..%2f", b"/%zz", b"/%", b"/%4", b"/%00", b"/%0d%0a", b"/%C3%A9", b"/%c3%28", b"/%FF"),
        *(
            b"/%u1234",
            b"/%25",
            b"/%2541",
            b"/\xc3\xa9",
            b"/\xff",
            b"/\xe2\x80\xa5",
            b"/a b",
            b"/a\tb",
            b"/\x00",
            b"/\x01",
        ),
        *(b"/\x7f", b"/a\\b", b"/<>", b'/"', b"/{}^~", b"/[::1]", b"/'()*", b"/:a", b"/@a", b"/+", b"/a|b", b"/a`b"),
        *(
            b"/a?b",
            b"/a?b=c&d=%20+",
            b"/?",
            b"/??",
            b"/a?b?c",
            b"/a?%zz",
            b"/a?\xff",
            b"/a?b#c",
            b"/#a",
            b"/a#b?c",
            b"?a",
        ),
        *(b"#a", b"*", b"a", b"a/b", b"", b"\\a", b".", b"test", b"test:80", b"/http://test/a", b"http://test/a"),
        *(
            b"https://test/a",
            b"HTTP://TEST/a",
            b"http://test",
            b"http://test?a",
            b"http://user@test/a",
            b"http://test:99/a?x",
        ),
        *(
            b"http://other/a",
            b"http://",
            b"http:///a",
            b"http:a",
            b"http:/a",
            b"ftp://test/a",
            b"ws://test/a",
            b"//test/a",
        ),
        *(b"http://[::1]/a", b"http://test/%2F#b", b"http://t\xc3\xa9st/a", b"urn:a:b", b"mailto:a@b", b"javascript:a"),
        *(b"/" + b"a" * length for length in (200, 1000, 4000, 4080, 4094, 4096, 8000, 8190, 9000, 33000, 70000)),
        *(b"/?" + b"a" * length for length in (4000, 8190, 70000)),
        b"/" + b"%41" * 1000,
    ]
    for target in targets:
        yield f"target {shown(target)}", head(b"GET " + target + b" HTTP/1.1")
    for target in (b"*", b"http://test/a", b"/a", b"test:80"):
        yield f"OPTIONS {shown(target)}", head(b"OPTIONS " + target + b" HTTP/1.1")
    for target in (b"test:80", b"test", b"/a", b"http://test:80/", b"[::1]:80"):
        yield f"CONNECT {shown(target)}", head(b"CONNECT " + target + b" HTTP/1.1")


def _lines() -> Iterator[Named]:
    versions = (
        b"HTTP/1.0 HTTP/0.9 HTTP/1.2 HTTP/1.9 HTTP/2.0 HTTP/2 HTTP/3 HTTP/1 HTTP/1. HTTP/.1 HTTP/11 HTTP/1.10 HTTP/01.1"
    )
    odd = b"HTTP/0.0 HTTP/9.9 HTTP/a.b HTTP/-1.1 http/1.1 Http/1.1 HTTQ/1.1 HTTPS/1.1 RTSP/1.0 ICY/1.0 HTTP HTTP/"
    for version in [
        *versions.split(),
        *odd.split(),
        b"HTTP/1.1 ",
        b"HTTP/1.1 x",
        b" HTTP/1.1",
        b"HTTP /1.1",
        b"HTTP/1.1\t",
    ]:
        yield f"version {shown(version)}", head(b"GET / " + version)
    for name, data in {
        "no version": b"GET /\r\n",
        "no version, a head": head(b"GET /"),
        "no target": head(b"GET HTTP/1.1"),
        "only a method": b"GET\r\n\r\n",
        "tabs between the words": head(b"GET\t/\tHTTP/1.1"),
        "two spaces": head(b"GET  /  HTTP/1.1"),
        "four words": head(b"GET / / HTTP/1.1"),
        "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "a space before": b" " + head(b"GET / HTTP/1.1"),
        "CRLF before": b"\r\n" + head(b"GET / HTTP/1.1"),
        "two CRLF before": b"\r\n\r\n" + head(b"GET / HTTP/1.1"),
        "five CRLF before": b"\r\n" * 5 + head(b"GET / HTTP/1.1"),
        "LF before": b"\n" + head(b"GET / HTTP/1.1"),
        "CR before": b"\r" + head(b"GET / HTTP/1.1"),
        "CRLF and a space before": b"\r\n " + head(b"GET / HTTP/1.1"),
        "a byte order mark before": b"\xef\xbb\xbf" + head(b"GET / HTTP/1.1"),
        "NUL before": b"\x00" + head(b"GET / HTTP/1.1"),
        "bare LF everywhere": head(b"GET / HTTP/1.1").replace(b"\r\n", b"\n"),
        "bare LF after the line": head(b"GET / HTTP/1.1").replace(b"\r\n", b"\n", 1),
        "bare LF after a field": head(b"GET / HTTP/1.1", b"A: b\nC: d"),
        "bare LF at the end": head(b"GET / HTTP/1.1", last=b"Connection: close\r\n\n"),
        "bare CR everywhere": head(b"GET / HTTP/1.1").replace(b"\r\n", b"\r") + b"\r\n\r\n",
        "bare CR in the line": head(b"GET /\r HTTP/1.1"),
        "CR CR LF": head(b"GET / HTTP/1.1").replace(b"\r\n", b"\r\r\n"),
        "LF CR": head(b"GET / HTTP/1.1").replace(b"\r\n", b"\n\r") + b"\r\n\r\n",
        "only CRLF": b"\r\n\r\n",
        "only LF": b"\n\n",
    }.items():
        yield f"line: {name}", data


def _fields() -> Iterator[Named]:
    for field in (
        *(
            b"A:b",
            b"A:",
            b"A: ",
            b"A:  b",
            b"A: b  ",
            b"A:\tb\t",
            b"A : b",
            b"A\t: b",
            b" A: b",
            b"\tA: b",
            b": b",
            b":",
            b"A",
        ),
        *(
            b"A b",
            b"A b: c",
            b"A=b",
            b"A: b: c",
            b"A::b",
            b"A(: b",
            b"A@b: c",
            b"A/b: c",
            b"A[: b",
            b'"A": b',
            b"A,B: c",
        ),
        *(
            b"A\x00: b",
            b"A\x80: b",
            b"\xc3\x89: b",
            b"A\x0b: b",
            b"A!#$%&'*+-.^_~: b",
            b"1: b",
            b"-: b",
            b"_: b",
            b"A_B: c",
        ),
        *(
            b"A: \x00",
            b"A: b\x00c",
            b"A: \x01",
            b"A: b\x0bc",
            b"A: b\x0cc",
            b"A: \x7f",
            b"A: \x80",
            b"A: \xff",
            b"A: \xc3\xa9",
        ),
        *(
            b"A: b\rc",
            b"A: b\r\n c",
            b"A: b\r\n\tc",
            b"A:\r\n b",
            b"A: b\r\n ",
            b"A: b\r\n\r c",
            b"A: b\n c",
            b" \r\nA: b",
        ),
        *(
            b"A: b\r\nA: c",
            b"A: b\r\na: c",
            b"A-B: c\r\nA_B: d",
            b"Cookie: a=1\r\nCookie: b=2",
            b"Accept: a\r\nAccept: b",
        ),
        *(
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-For: 1.2.3.4",
            b"X-Forwarded-Host: a",
            b"X_Forwarded_For: 1.2.3.4",
        ),
        *(b"Forwarded: for=1.2.3.4;proto=https", b"Proxy: a", b"SCRIPT_NAME: /a", b"Script-Name: /a", b"PATH_INFO: /a"),
        *(
            b"Content-Type: text/plain",
            b"Content_Type: text/plain",
            b"Date: x",
            b"Server: x",
            b"Authorization: Basic YTpi",
        ),
        *(
            b"Range: bytes=0-",
            b"If-None-Match: *",
            b"Max-Forwards: 0",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: close",
        ),
        *(b"A: " + b"b" * length for length in (1000, 8000, 8180, 8190, 9000, 33000, 66000, 140000)),
        *(b"A" * length + b": b" for length in (100, 8000, 9000)),
    ):
        yield f"field {shown(field)}", head(b"GET / HTTP/1.1", field)
    for number in (50, 95, 98, 99, 100, 101, 128, 200, 1000):
        fields = [b"A%d: b" % one for one in range(number)]
        yield f"{number} fields", head(b"GET / HTTP/1.1", *fields)
    yield "fields of 60 KB together", head(b"GET / HTTP/1.1", *(b"A%d: %b" % (one, b"b" * 1000) for one in range(60)))


def _hosts() -> Iterator[Named]:
    hosts = [
        b"",
        b" ",
        b"test:80",
        b"test:",
        b"test:x",
        b"test:99999",
        b"a,b",
        b"user@test",
        b"[::1]",
        b"[::1]:80",
        b"[",
        b"::1",
    ]
    more = [
        b"t\xc3\xa9st",
        b"a b",
        b"a/b",
        b"http://test",
        b"TEST",
        b"test.",
        b"a\tb",
        b"a\x00b",
        b"127.0.0.1",
        b"a_b",
        b"%41",
    ]
    for host in [*hosts, *more]:
        yield f"host {shown(host)}", b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n" + END
    for name, data in {
        "no host": b"GET / HTTP/1.1\r\n" + END,
        "no host, HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
        "two hosts": head(b"GET / HTTP/1.1", b"Host: other"),
        "two equal hosts": head(b"GET / HTTP/1.1", b"Host: test"),
        "two hosts, HTTP/1.0": head(b"GET / HTTP/1.0", b"Host: other", last=b"\r\n"),
        "host last": b"GET / HTTP/1.1\r\nConnection: close\r\nHost: test\r\n\r\n",
        "host with a space": b"GET / HTTP/1.1\r\nHost : test\r\n" + END,
        "host in two lines": b"GET / HTTP/1.1\r\nHost:\r\n test\r\n" + END,
        "other host than the target's": b"GET http://other/ HTTP/1.1\r\nHost: test\r\n" + END,
        "no host, absolute target": b"GET http://other/ HTTP/1.1\r\n" + END,
    }.items():
        yield f"host: {name}", data


def _lengths() -> Iterator[Named]:
    for length in (
        *(
            b"5",
            b"0",
            b"+5",
            b"-5",
            b"-0",
            b"5x",
            b"x5",
            b"0x5",
            b"5 ",
            b"  5",
            b"5\t",
            b"5,5",
            b"5, 5",
            b"5, 6",
            b"5;5",
            b"5 5",
        ),
        *(
            b"05",
            b"0005",
            b"5.0",
            b"5e0",
            b"5_0",
            b"",
            b" ",
            b'"5"',
            b"\xb2",
            b"\xd9\xa5",
            b"5\x00",
            b"\x0b5",
            b"5\x0b",
            b"five",
        ),
        *(
            b"4",
            b"6",
            b"99999999999999999999",
            b"18446744073709551621",
            b"9223372036854775808",
            b"4294967301",
            b"1" * 5000,
        ),
    ):
        yield f"length {shown(length)}", post(b"Content-Length: " + length, body=b"hello")
    for name, fields in {
        "twice, equal": [b"Content-Length: 5", b"Content-Length: 5"],
        "twice, different": [b"Content-Length: 5", b"Content-Length: 6"],
        "twice, one empty": [b"Content-Length: 5", b"Content-Length:"],
        "lower case": [b"content-length: 5"],
        "upper case": [b"CONTENT-LENGTH: 5"],
        "with an underscore": [b"Content_Length: 5"],
        "with an underscore and a hyphen": [b"Content_Length: 0", b"Content-Length: 5"],
        "with a space before the colon": [b"Content-Length : 5"],
        "in two lines": [b"Content-Length:\r\n 5"],
        "with a NUL in the name": [b"Content-Length\x00: 5"],
        "behind a bare CR": [b"A: b\rContent-Length: 5"],
        "behind a bare LF": [b"A: b\nContent-Length: 5"],
        "missing": [],
        "and chunked": [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        "behind chunked": [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        "zero and chunked": [b"Content-Length: 0", b"Transfer-Encoding: chunked"],
        "wrong and chunked": [b"Content-Length: x", b"Transfer-Encoding: chunked"],
        "and identity": [b"Content-Length: 5", b"Transfer-Encoding: identity"],
    }.items():
        yield f"length {name}", post(*fields, body=b"hello")
        if fields:
            yield f"length {name}, chunks", post(*fields, body=chunked(b"hello"))
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE"):
        whole = head(method + b" / HTTP/1.1", b"Content-Length: 5", last=b"\r\n") + b"hello" + NEXT
        yield f"{method.decode()} with a body", whole
    yield (
        "GET with a request as its body",
        head(b"GET / HTTP/1.1", b"Content-Length: %d" % len(NEXT), last=b"\r\n") + NEXT,
    )
    yield "HTTP/1.0 with a length", b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello"
    yield "HTTP/1.0 without a length", b"POST / HTTP/1.0\r\n\r\nhello"
    for size in (1, 100, 8191, 8192, 65535, 65536, 70000, 1_000_000):
        yield f"a body of {size}", post(b"Content-Length: %d" % size, body=b"a" * size)
        yield (
            f"a body of {size} that is not read",
            post(b"Content-Length: %d" % size, body=b"a" * size, path=b"/unread"),
        )


def _encodings() -> Iterator[Named]:
    for coding in (
        *(
            b"chunked",
            b"Chunked",
            b"CHUNKED",
            b"chunked ",
            b"  chunked",
            b"\tchunked",
            b"\x0bchunked",
            b"chunked\x00",
            b"xchunked",
        ),
        *(
            b"chunkedx",
            b"chunked;q=1",
            b'"chunked"',
            b"'chunked'",
            b"identity",
            b"identity, chunked",
            b"chunked, identity",
            b"",
        ),
        *(
            b"gzip",
            b"gzip, chunked",
            b"chunked, gzip",
            b"chunked, chunked",
            b"chunked,",
            b",chunked",
            b"chunk",
            b"x",
            b"deflate",
        ),
        *(
            b"chunked\r\n ",
            b"\r\n chunked",
            b"chu\xc5\x84ked",
            b"trailers",
            b"gzip,chunked",
            b"compress, gzip, chunked",
        ),
    ):
        fields = b"Transfer-Encoding: " + coding
        yield f"coding {shown(coding)}", post(fields, body=chunked(b"hello"))
        yield f"coding {shown(coding)}, a length", post(fields, b"Content-Length: 5", body=chunked(b"hello"))
    for name, fields_of in {
        "twice": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        "twice, the second is identity": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
        "twice, the first is identity": [b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"],
        "twice, the second is unknown": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: cow"],
        "with an underscore": [b"Transfer_Encoding: chunked"],
        "with a space before the colon": [b"Transfer-Encoding : chunked"],
        "with a space before the name": [b" Transfer-Encoding: chunked"],
        "behind a bare LF": [b"A: b\nTransfer-Encoding: chunked"],
        "behind a bare CR": [b"A: b\rTransfer-Encoding: chunked"],
        "no hyphen": [b"TransferEncoding: chunked"],
        "TE: chunked": [b"TE: chunked"],
    }.items():
        yield f"coding {name}", post(*fields_of, body=chunked(b"hello"))
        yield f"coding {name}, a length", post(*fields_of, b"Content-Length: 3", body=chunked(b"hello"))
    yield "coding, HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hello")
    yield (
        "coding, HTTP/1.0, keep-alive",
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hello") + NEXT,
    )
    yield (
        "GET with chunks",
        head(b"GET / HTTP/1.1", b"Transfer-Encoding: chunked", last=b"\r\n") + chunked(b"hello") + NEXT,
    )
    yield (
        "HEAD with chunks",
        head(b"HEAD / HTTP/1.1", b"Transfer-Encoding: chunked", last=b"\r\n") + chunked(b"a") + NEXT,
    )


def _chunks() -> Iterator[Named]:
    for size in (
        *(
            b"5",
            b"05",
            b"0005",
            b"5 ",
            b"5\t",
            b" 5",
            b"5;a",
            b"5;a=b",
            b'5;a="b"',
            b'5;a="b',
            b"5 ; a",
            b"5;",
            b"5;;",
            b"5;\x00",
        ),
        *(
            b"5;a\xff",
            b"5;a=b;c=d",
            b"0x5",
            b"-5",
            b"+5",
            b"5_",
            b"g",
            b"",
            b"5,",
            b"5:",
            b"5.0",
            b"5h",
            b"\xb2",
            b"4",
            b"6",
            b"50",
        ),
        *(
            b"5\r",
            b"5\x00",
            b"FFFFFFFFFFFFFFFF",
            b"FFFFFFFFFFFFFFFFF",
            b"10000000000000005",
            b"0" * 100 + b"5",
            b"7fffffff",
        ),
        *(b"5;" + b"a" * length for length in (100, 1000, 4000, 9000, 20000, 70000)),
    ):
        yield f"chunk size {shown(size)}", post(b"Transfer-Encoding: chunked", body=size + b"\r\nhello\r\n0\r\n\r\n")
    for name, body in {
        "upper case": b"A\r\n0123456789\r\n0\r\n\r\n",
        "lower case": b"a\r\n0123456789\r\n0\r\n\r\n",
        "none": b"0\r\n\r\n",
        "several": chunked(b"a", b"bc", b"def"),
        "a hundred": chunked(*[b"a"] * 100),
        "of 100 KB": chunked(b"a" * 100_000),
        "LF after the size": b"5\nhello\r\n0\r\n\r\n",
        "LF after the data": b"5\r\nhello\n0\r\n\r\n",
        "LF everywhere": b"5\nhello\n0\n\n",
        "CR after the size": b"5\rhello\r\n0\r\n\r\n",
        "nothing after the data": b"5\r\nhello0\r\n\r\n",
        "more after the data": b"5\r\nhelloxx\r\n0\r\n\r\n",
        "two CRLF after the data": b"5\r\nhello\r\n\r\n0\r\n\r\n",
        "a space before the data's end": b"5\r\nhello \r\n0\r\n\r\n",
        "LF at the end": b"5\r\nhello\r\n0\r\n\n",
        "last one of three zeros": b"5\r\nhello\r\n000\r\n\r\n",
        "last one with an extension": b"5\r\nhello\r\n0;a=b\r\n\r\n",
        "last one with a space": b"5\r\nhello\r\n0 \r\n\r\n",
        "an extension with a bare LF": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "an extension with a bare CR": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        "a trailer": b"5\r\nhello\r\n0\r\nA: b\r\n\r\n",
        "two trailers": b"5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n",
        "a trailer with a length": b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        "a trailer without a colon": b"5\r\nhello\r\n0\r\nA\r\n\r\n",
        "a trailer that is a request": b"5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "a trailer of 10 KB": b"5\r\nhello\r\n0\r\nA: " + b"b" * 10_000 + b"\r\n\r\n",
        "a trailer with LF": b"5\r\nhello\r\n0\r\nA: b\n\r\n",
        "200 trailers": b"0\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(200)) + b"\r\n",
    }.items():
        yield f"chunks: {name}", post(b"Transfer-Encoding: chunked", body=body)
    yield "chunks that are not read", post(b"Transfer-Encoding: chunked", body=chunked(b"hello"), path=b"/unread")
    yield "bad chunks that are not read", post(b"Transfer-Encoding: chunked", body=b"x\r\n\r\n", path=b"/unread")


def _connections() -> Iterator[Named]:
    fields = [
        b"close",
        b"Close",
        b"CLOSE",
        b"keep-alive",
        b"Keep-Alive",
        b"close, keep-alive",
        b"keep-alive, close",
        b"upgrade",
    ]
    for value in [
        *fields,
        b"x",
        b"",
        b"x, close",
        b"close,",
        b"close;a",
        b"closed",
        b"close\r\nConnection: keep-alive",
    ]:
        for version in (b"1.0", b"1.1"):
            first = head(b"GET / HTTP/" + version, b"Connection: " + value, last=b"\r\n")
            yield f"connection {shown(value)}, HTTP/{version.decode()}", first + NEXT
    yield "connection not said, HTTP/1.0", head(b"GET / HTTP/1.0", last=b"\r\n") + NEXT
    yield "connection not said, HTTP/1.1", head(b"GET / HTTP/1.1", last=b"\r\n") + NEXT


def _pipelines() -> Iterator[Named]:
    one = head(b"GET /one HTTP/1.1", last=b"\r\n")
    for number in (2, 3, 10, 50):
        yield f"pipeline of {number}", one * (number - 1) + NEXT
    for name, data in {
        "POST first": head(b"POST / HTTP/1.1", b"Content-Length: 5", last=b"\r\n") + b"hello" + one,
        "HEAD first": head(b"HEAD / HTTP/1.1", last=b"\r\n") + one,
        "a body that is not read": head(b"POST /unread HTTP/1.1", b"Content-Length: 5", last=b"\r\n") + b"hello" + one,
        "a large body that is not read": head(b"POST /unread HTTP/1.1", b"Content-Length: 90000", last=b"\r\n")
        + b"a" * 90000
        + one,
        "chunks that are not read": head(b"POST /unread HTTP/1.1", b"Transfer-Encoding: chunked", last=b"\r\n")
        + chunked(b"hello")
        + one,
        "CRLF between": one + b"\r\n" + one,
        "LF between": one + b"\n" + one,
        "spaces between": one + b"  " + one,
        "NUL between": one + b"\x00" + one,
        "the first one closes": head(b"GET / HTTP/1.1") + one,
        "the first one is HTTP/1.0": head(b"GET / HTTP/1.0", last=b"\r\n") + one,
        "the second one is HTTP/1.0": one + head(b"GET / HTTP/1.0", last=b"\r\n") + one,
        "the second one is bad": one + b"GARBAGE\r\n\r\n" + one,
        "the second one has a bad field": one + head(b"GET / HTTP/1.1", b"A b", last=b"\r\n") + one,
        "the first one fails": head(b"GET /raise HTTP/1.1", last=b"\r\n") + one,
        "the first one streams": head(b"GET /stream HTTP/1.1", last=b"\r\n") + one,
        "the first one has no content": head(b"GET /204 HTTP/1.1", last=b"\r\n") + one,
        "the first one is not modified": head(b"GET /304 HTTP/1.1", last=b"\r\n") + one,
        "the application ends the first one": head(b"GET /close HTTP/1.1", last=b"\r\n") + one,
        "a head of 6 KB each": head(b"GET / HTTP/1.1", b"A: " + b"b" * 6000, last=b"\r\n") * 5,
        "a body and three more": head(b"PUT / HTTP/1.1", b"Content-Length: 9000", last=b"\r\n") + b"a" * 9000 + one * 3,
        "an upgrade first": head(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: x", last=b"\r\n") + one,
    }.items():
        yield f"pipeline: {name}", data + NEXT


def _upgrades() -> Iterator[Named]:
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade, version = b"Connection: Upgrade\r\nUpgrade: websocket", b"Sec-WebSocket-Version: 13"
    for name, fields in {
        "h2c": [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"],
        "TLS": [b"Connection: Upgrade", b"Upgrade: TLS/1.0"],
        "not in Connection": [b"Upgrade: websocket", key, version],
        "only in Connection": [b"Connection: Upgrade"],
        "unknown": [b"Connection: Upgrade", b"Upgrade: foo/1"],
        "several": [b"Connection: Upgrade", b"Upgrade: foo, bar"],
        "empty": [b"Connection: Upgrade", b"Upgrade:"],
    }.items():
        yield f"upgrade: {name}", head(b"GET / HTTP/1.1", *fields, last=b"\r\n") + NEXT
        with_body = head(b"POST / HTTP/1.1", *fields, b"Content-Length: 5", last=b"\r\n") + b"hello" + NEXT
        yield f"upgrade with a body: {name}", with_body
    for name, line, fields in [
        ("refused", b"GET /refused HTTP/1.1", [upgrade, key, version]),
        ("no key", b"GET /refused HTTP/1.1", [upgrade, version]),
        ("a short key", b"GET /refused HTTP/1.1", [upgrade, version, b"Sec-WebSocket-Key: a"]),
        ("two keys", b"GET /refused HTTP/1.1", [upgrade, version, key, key]),
        ("no version", b"GET /refused HTTP/1.1", [upgrade, key]),
        ("version 12", b"GET /refused HTTP/1.1", [upgrade, key, b"Sec-WebSocket-Version: 12"]),
        ("HTTP/1.0", b"GET /refused HTTP/1.0", [upgrade, key, version]),
        ("POST", b"POST /refused HTTP/1.1", [upgrade, key, version]),
        ("HEAD", b"HEAD /refused HTTP/1.1", [upgrade, key, version]),
        ("with a length", b"GET /refused HTTP/1.1", [upgrade, key, version, b"Content-Length: 0"]),
        ("an unknown protocol", b"GET /refused HTTP/1.1", [upgrade, key, version, b"Sec-WebSocket-Protocol: a, b"]),
        (
            "an unknown extension",
            b"GET /refused HTTP/1.1",
            [upgrade, key, version, b"Sec-WebSocket-Extensions: x; y=z"],
        ),
    ]:
        yield f"websocket: {name}", head(line, *fields, last=b"\r\n")


def _applications() -> Iterator[Named]:
    for path in (
        b"/204",
        b"/304",
        b"/raise",
        b"/stream",
        b"/close",
        b"/empty",
        b"/long",
        b"/short",
        b"/404",
        b"/500",
        b"/date",
    ):
        for method in (b"GET", b"HEAD"):
            for version in (b"1.0", b"1.1"):
                name = f"application {method.decode()} {path.decode()}, HTTP/{version.decode()}"
                yield name, head(method + b" " + path + b" HTTP/" + version, last=b"\r\n")
    kept = head(b"GET /stream HTTP/1.0", b"Connection: keep-alive", last=b"\r\n")
    yield "application GET /stream, HTTP/1.0, keep-alive", kept
    yield "application GET /length, HTTP/1.0, keep-alive", kept.replace(b"/stream", b"/length")


def _no_http() -> Iterator[Named]:
    for name, data in {
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 507,
        "SMTP": b"EHLO example.org\r\n",
        "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        "half a preface": b"PRI * HTTP/2.0\r\n\r\n",
        "PROXY v1": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + NEXT,
        "PROXY v2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x00\x01\x00\x02" + NEXT,
        "random bytes": bytes(range(256)),
        "zeros": bytes(100),
        "a long line": b"a" * 100_000,
        "FTP": b"USER anonymous\r\n",
        "redis": b"*1\r\n$4\r\nPING\r\n",
        "memcached": b"stats\r\n",
        "JSON": b'{"a": 1}\n',
        "CRLF without end": b"\r\n" * 2000,
    }.items():
        yield f"no HTTP: {name}", data


def _unfinished() -> Iterator[Named]:
    for name, data in {
        "a letter": b"G",
        "a method": b"GET ",
        "half a line": b"GET / HT",
        "a line": b"GET / HTTP/1.1\r\n",
        "half a field": b"GET / HTTP/1.1\r\nHo",
        "a head without its end": b"GET / HTTP/1.1\r\nHost: test\r\n",
        "a head and CR": b"GET / HTTP/1.1\r\nHost: test\r\n\r",
        "no body": head(b"POST / HTTP/1.1", b"Content-Length: 5"),
        "half a body": head(b"POST / HTTP/1.1", b"Content-Length: 5") + b"he",
        "half a body that is not read": head(b"POST /unread HTTP/1.1", b"Content-Length: 5") + b"he",
        "no chunk": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"),
        "half a size": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked") + b"5",
        "half a chunk": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked") + b"5\r\nhe",
        "no last chunk": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n",
        "half a last chunk": head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n",
        "half a second request": head(b"GET / HTTP/1.1", last=b"\r\n") + b"GET / HT",
    }.items():
        yield f"unfinished: {name}", data


def _steps() -> Iterator[Case]:
    """Yield what is not sent at once."""
    whole = head(b"POST /split HTTP/1.1", b"Content-Length: 10", b"A: b", last=b"\r\n") + b"0123456789" + NEXT
    for place in range(5, len(whole), 9):
        yield Case(f"split at {place}", (whole[:place], PAUSE, whole[place:]))
    in_chunks = post(b"Transfer-Encoding: chunked", body=b"5;a\r\nhello\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n")
    for place in range(in_chunks.index(b"5;a"), in_chunks.index(NEXT) + 4, 3):
        yield Case(f"split chunks at {place}", (in_chunks[:place], PAUSE, in_chunks[place:]))
    slow = head(b"GET / HTTP/1.1")
    yield Case("a byte at a time", tuple(step for byte in slow for step in (bytes([byte]), PAUSE)))
    expect = b"Expect: 100-continue"
    for name, fields, body in [
        ("a length", [expect, b"Content-Length: 5"], b"hello"),
        ("chunks", [expect, b"Transfer-Encoding: chunked"], chunked(b"hello")),
        ("upper case", [b"EXPECT: 100-CONTINUE", b"Content-Length: 5"], b"hello"),
        ("twice", [expect, expect, b"Content-Length: 5"], b"hello"),
        ("two values", [b"Expect: 100-continue, x", b"Content-Length: 5"], b"hello"),
        ("unknown", [b"Expect: x", b"Content-Length: 5"], b"hello"),
        ("empty", [b"Expect:", b"Content-Length: 5"], b"hello"),
        ("no body", [expect], b""),
        ("a body of nothing", [expect, b"Content-Length: 0"], b""),
    ]:
        asks = head(b"POST / HTTP/1.1", *fields)
        yield Case(f"expect {name}", (asks, ANSWER, body))
        yield Case(f"expect {name}, not waited for", (asks + body,))
        yield Case(f"expect {name}, the body is not read", (asks.replace(b" / ", b" /unread "), ANSWER, body))
    yield Case(
        "expect, HTTP/1.0", (b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", ANSWER, b"hello")
    )
    yield Case("expect GET", (head(b"GET / HTTP/1.1", expect),))
    kept = head(b"GET /kept HTTP/1.1", last=b"\r\n")
    with_body = head(b"POST /kept HTTP/1.1", b"Content-Length: 5", last=b"\r\n") + b"hello"
    unread = with_body.replace(b"/kept", b"/unread")
    for name, first, second in [
        ("GET, GET", kept, NEXT),
        ("POST, GET", with_body, NEXT),
        ("a body that is not read, GET", unread, NEXT),
        ("GET, garbage", kept, b"GARBAGE\r\n\r\n"),
        ("GET, CRLF", kept, b"\r\n" + NEXT),
        ("GET, HTTP/1.0", kept, b"GET / HTTP/1.0\r\n\r\n"),
        ("HEAD, GET", kept.replace(b"GET", b"HEAD"), NEXT),
        ("204, GET", kept.replace(b"/kept", b"/204"), NEXT),
        ("an error, GET", kept.replace(b"/kept", b"/raise"), NEXT),
        ("a stream, GET", kept.replace(b"/kept", b"/stream"), NEXT),
    ]:
        yield Case(f"kept: {name}", (first, ANSWER, PAUSE, second), converses=True)


GROUPS = (
    *(_methods, _targets, _lines, _fields, _hosts, _lengths, _encodings, _chunks, _connections, _pipelines),
    *(_upgrades, _applications, _no_http, _unfinished),
)
CORPUS: tuple[Case, ...] = (*(Case(name, (data,)) for group in GROUPS for name, data in group()), *_steps())
"""All cases, by unique names."""

HEALTH_PATH = "/health-check"
HEALTH: tuple[Case, ...] = tuple(
    Case(f"health {shown(line)}", (head(line),))
    for line in (
        *(b"GET /health-check HTTP/1.1", b"HEAD /health-check HTTP/1.1", b"POST /health-check HTTP/1.1"),
        *(b"OPTIONS /health-check HTTP/1.1", b"PROPFIND /health-check HTTP/1.1", b"GET /health-check?a=b HTTP/1.1"),
        *(b"GET /health%2Dcheck HTTP/1.1", b"GET http://test/health-check HTTP/1.1", b"GET /health-check HTTP/1.0"),
    )
)
"""What the worker answers itself where the health path is on, alike in each class."""

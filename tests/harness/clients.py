"""Clients on plain sockets: they notice exactly what a client can notice, and hide nothing.

Rules:

* Standard library only: this file is also the program of the load (its own process, so
  that neither the tests nor the watcher wait for it).
* A keep-alive connection is used as a careful client does: it looks for end of file before it sends, and obeys
  ``Connection: close``. Everything else that goes wrong is a failure; nothing is tried again.
* Times are ``time.monotonic()``, the same clock in all processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""
CLIENT_TIMEOUT_S = 30.0
"""Seconds that a client waits for anything."""
PIECE = 65536
MEGABYTE = 1_000_000
FAILURE_NAMES: dict[type[OSError], str] = {
    TimeoutError: "timeout",
    ConnectionRefusedError: "refused",
    ConnectionResetError: "reset",
    BrokenPipeError: "pipe",
}


class Broken(Exception):
    """A request failed; the text says how, with one word: "reset", "closed", "cut", "timeout", "refused"."""


@dataclass(frozen=True)
class Reply:
    """An answer that arrived whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        plain = json.loads(self.body)
        assert isinstance(plain, dict)
        return plain

    @property
    def last(self) -> bool:
        """Whether the server announced that it will close the connection."""
        return "close" in self.headers.get("connection", "").lower()


class Client:
    """One connection.

    :param tls: speak TLS, trusting whatever certificate comes.
    """

    def __init__(self, address: Address, *, tls: bool = False, timeout: float = CLIENT_TIMEOUT_S) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self._buffer = bytearray()
        try:
            self.socket.connect(address)
            if family == socket.AF_INET:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            self.socket.close()
            raise Broken(_failure_name(error)) from error
        if tls:
            self.start_tls()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_tls(self) -> None:
        """Begin to speak TLS on this connection."""
        try:
            self.socket = trusting().wrap_socket(self.socket)
        except OSError as error:
            raise Broken(_failure_name(error)) from error

    def begin_tls(self) -> None:
        """Send the first message of a TLS handshake and leave it at that."""
        self.socket = trusting().wrap_socket(self.socket, do_handshake_on_connect=False)
        self.socket.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.socket.do_handshake()
        self.socket.settimeout(CLIENT_TIMEOUT_S)

    def finish_tls(self) -> None:
        """Go on with the handshake that :meth:`begin_tls` began."""
        assert isinstance(self.socket, ssl.SSLSocket)
        try:
            self.socket.do_handshake()
        except OSError as error:
            raise Broken(_failure_name(error)) from error

    def close(self) -> None:
        self.socket.close()

    def __del__(self) -> None:
        """Close it, as the end of a client's process does: a test may simply drop its clients."""
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of ``data``.

        :raises Broken: the server has gone.
        """
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Broken(_failure_name(error)) from error

    def ask(self, method: str, path: str, body: bytes | None = None, *, headers: str = "") -> Reply:
        """Send one request and return its answer."""
        self.send(request(method, path, body, headers=headers))
        return self.reply()

    def upload(self, path: str, body: bytes, pieces: int = 20, seconds: float = 1.0) -> None:
        """POST ``body`` chunked, slowly and on the connection's last request."""
        self.send(request("POST", path, headers="Connection: close\r\nTransfer-Encoding: chunked\r\n"))
        size = len(body) // pieces + 1
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            self.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            time.sleep(seconds / pieces)
        self.send(b"0\r\n\r\n")

    def reply(self) -> Reply:
        """Read one answer.

        :raises Broken: it did not arrive whole.
        """
        head = self._until(b"\r\n\r\n", "closed")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        if headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            body = b"" if status < 200 or status in (204, 304) else self._rest()
        return Reply(status, headers, body)

    def ended(self) -> bool:
        """Whether the server has closed the connection; a look that takes nothing.

        :raises Broken: it was reset.
        """
        self.socket.setblocking(False)
        try:
            if isinstance(self.socket, ssl.SSLSocket):  # no peeking in there: the server owes nothing, so none is lost
                return self.socket.recv(1) == b""
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError as error:
            raise Broken("reset while idle") from error
        finally:
            self.socket.settimeout(CLIENT_TIMEOUT_S)

    def wait_end(self) -> float:
        """Read until the server closes; return the seconds that took."""
        start = time.monotonic()
        self._rest()
        return time.monotonic() - start

    def _receive(self, nothing: str) -> None:
        try:
            piece = self.socket.recv(PIECE)
        except OSError as error:
            raise Broken(_failure_name(error)) from error
        if not piece:
            raise Broken("cut" if self._buffer else nothing)
        self._buffer += piece

    def _until(self, end: bytes, nothing: str) -> bytes:
        while (found := self._buffer.find(end)) < 0:
            self._receive(nothing)
        piece = bytes(self._buffer[:found])
        del self._buffer[: found + len(end)]
        return piece

    def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            self._receive("cut")
        piece = bytes(self._buffer[:length])
        del self._buffer[:length]
        return piece

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._until(b"\r\n", "cut"), 16):
            body += self._exactly(size)
            self._exactly(2)
        self._exactly(2)
        return body

    def _rest(self) -> bytes:
        try:
            while piece := self.socket.recv(PIECE):
                self._buffer += piece
        except OSError as error:
            raise Broken(_failure_name(error)) from error
        piece = bytes(self._buffer)
        self._buffer.clear()
        return piece


def request(method: str, path: str, body: bytes | None = None, *, headers: str = "") -> bytes:
    """Return one HTTP/1.1 request as it goes over the wire."""
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{length}{headers}\r\n".encode() + (body or b"")


def trusting() -> ssl.SSLContext:
    """Return a TLS context that trusts any certificate: the tests' own is signed by itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _failure_name(error: OSError) -> str:
    for kind, word in FAILURE_NAMES.items():
        if isinstance(error, kind):
            return word
    return f"{type(error).__name__} {error}"


# -- load ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One request of the load that was answered: when it was sent, seconds it took, and by whom."""

    time: float
    latency: float
    version: str
    pid: int


@dataclass(frozen=True)
class Failure:
    """One request of the load that was not answered, and how the client noticed.

    ``fresh``: it was the first one on its connection.
    """

    time: float
    latency: float
    how: str
    fresh: bool


@dataclass
class Results:
    """What the load saw.

    ``reopened`` counts keep-alive connections that had ended when the client looked, ``told_to_close`` those of which
    the server said with a response that they end.
    """

    answers: list[Answer]
    failures: list[Failure]
    reopened: int = 0
    told_to_close: int = 0

    def versions(self) -> list[str]:
        """Return the versions in the order of their first answers."""
        ordered = sorted(self.answers, key=lambda answer: answer.time)
        return list(dict.fromkeys(answer.version for answer in ordered))

    def since(self, moment: float) -> list[Answer]:
        return [answer for answer in self.answers if answer.time >= moment]

    def longest_gap(self, start: float, end: float) -> float:
        """Return the longest time between two answers, of any client, from ``start`` to ``end``."""
        arrivals = sorted(answer.time + answer.latency for answer in self.answers)
        within = [start, *(moment for moment in arrivals if start <= moment <= end), end]
        return max(later - earlier for earlier, later in itertools.pairwise(within))


@dataclass(frozen=True)
class Plan:
    """What the clients do.

    ``style`` is one of these:

    * "new": a connection per request.
    * "kept": POSTs on one connection as long as it lasts.
    * "slow": requests that take a second, each on a new connection.
    * "upload": a body of a megabyte, in pieces over a second, without a length in its head, each on a new connection.

    ``pause`` is the seconds that a client rests between requests, ``think`` the most that it adds to that at random.
    """

    address: Address
    style: str = "new"
    clients: int = 24
    tls: bool = False
    pause: float = 0.0
    think: float = 0.0
    size: int = 2000


class Load:
    """Clients in a process of their own, from entering to :meth:`stop`."""

    def __init__(self, address: Address, style: str = "new", **plan: Any) -> None:
        self.plan = Plan(address, style, **plan)
        self._process: subprocess.Popen[bytes] | None = None
        self._results: Results | None = None

    def __enter__(self) -> Load:
        words = [sys.executable, __file__, json.dumps(asdict(self.plan))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        started = self._process.stdout.readline()
        assert started == b"answered\n", started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> Results:
        """End the load and return what it saw."""
        if self._results is None:
            assert self._process is not None
            output, _ = self._process.communicate(timeout=CLIENT_TIMEOUT_S + 10)
            plain = json.loads(output)
            self._results = Results(
                [Answer(*answer) for answer in plain["answers"]],
                [Failure(*failure) for failure in plain["failures"]],
                plain["reopened"],
                plain["told_to_close"],
            )
        return self._results


class _Clients:
    """The threads of a load, and their common result."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.over = threading.Event()
        self.answered = threading.Event()
        self.answers: list[tuple[float, float, str, int]] = []
        self.failures: list[tuple[float, float, str, bool]] = []
        self.reopened = self.told_to_close = 0
        # JSON knows no tuples
        self.address: Address = plan.address if isinstance(plan.address, str) else (plan.address[0], plan.address[1])
        size = MEGABYTE if plan.style == "upload" else plan.size
        self.body = bytes(range(256)) * (size // 256 + 1)
        self.digest = hashlib.sha256(self.body).hexdigest()

    def attempt(self, client: Client | None) -> Client | None:
        """Do one request; return the connection if it can be used again."""
        start, fresh, reply = time.monotonic(), client is None, None
        try:
            if client is not None and client.ended():
                client.close()
                client, fresh, self.reopened = None, True, self.reopened + 1
            used = client or Client(self.address, tls=self.plan.tls)
            client = used
            reply = self._ask(used)
        except Broken as error:
            self.failures.append((start, time.monotonic() - start, str(error), fresh))
        if reply is not None and self.plan.style == "kept":
            if not reply.last:
                return client
            self.told_to_close += 1
        if client is not None:
            client.close()
        return None

    def _ask(self, client: Client) -> Reply:
        start = time.monotonic()
        style = self.plan.style
        if style == "kept":
            reply = client.ask("POST", "/echo", self.body)
        elif style == "upload":
            client.upload("/echo", self.body)
            reply = client.reply()
        else:
            path = "/sleep?seconds=1" if style == "slow" else "/"
            reply = client.ask("GET", path, headers="Connection: close\r\n")
        if reply.status != 200:
            raise Broken(f"status {reply.status}")
        plain = reply.json()
        if style in ("kept", "upload") and plain["digest"] != self.digest:
            raise Broken("another body")
        self.answers.append((start, time.monotonic() - start, plain["version"], plain["pid"]))
        self.answered.set()
        return reply

    def one(self) -> None:
        """The life of one thread."""
        client: Client | None = None
        while not self.over.is_set():
            client = self.attempt(client)
            rest = self.plan.pause + random.uniform(0.0, self.plan.think)
            if rest:
                self.over.wait(rest)
        if client is not None:
            client.close()


def main() -> None:
    """The program: clients work until standard input ends, then everything they saw is written out."""
    clients = _Clients(Plan(**json.loads(sys.argv[1])))
    threads = [threading.Thread(target=clients.one) for _ in range(clients.plan.clients)]
    for thread in threads:
        thread.start()
    clients.answered.wait(CLIENT_TIMEOUT_S)
    print("answered", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    clients.over.set()
    for thread in threads:
        thread.join()
    seen = {name: getattr(clients, name) for name in ("answers", "failures", "reopened", "told_to_close")}
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()

"""TCP sockets of this machine, as the kernel's sock_diag(7) tells them.

Not from /proc/net/tcp: after a test under load that has a line for each of ten thousands of connections that wait out
their time, and takes longer to read than what is looked for lasts.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
SYN_RECEIVED, TIME_WAIT, LISTEN = 3, 6, 10
"""States (include/net/tcp_states.h)."""
LISTENING = 1 << LISTEN
OPEN = 0xFFF & ~(1 << TIME_WAIT) & ~(1 << SYN_RECEIVED)
HEADER = struct.Struct("=IHHII")
ANSWER = struct.Struct("=BBBB 2s2s 44x IIIII")


@dataclass(frozen=True)
class TcpSocket:
    """One socket. ``queue``: bytes that nobody has read; of a listener, connections that nobody has accepted."""

    state: int
    port: int
    peer: int
    queue: int
    inode: int


def tcp(states: int, port: int = 0) -> Iterator[TcpSocket]:
    """Yield the TCP sockets, IPv4 and IPv6, that are in one of ``states`` (a bit for each) on ``port`` (0: on any).

    :raises OSError: the kernel refuses.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, states)
        body += struct.pack("!HH", port, 0) + bytes(32) + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
            header = HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 0, 0)
            kernel.send(header + body)
            yield from _answers(kernel)


def _answers(kernel: socket.socket) -> Iterator[TcpSocket]:
    while True:
        data = kernel.recv(1 << 18)
        while data:
            length, kind, *_ = HEADER.unpack_from(data)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                raise OSError("the kernel does not tell of its sockets (sock_diag)")
            yield _one(data[HEADER.size : length])
            data = data[(length + 3) & ~3 :]


def _one(answer: bytes) -> TcpSocket:
    _family, state, _timer, _retransmits, port, peer, _expires, received, _sent, _uid, inode = ANSWER.unpack_from(
        answer
    )
    return TcpSocket(state, int.from_bytes(port, "big"), int.from_bytes(peer, "big"), received, inode)

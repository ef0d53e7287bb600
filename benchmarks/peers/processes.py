"""Processes of peers: they end with us, and what they said is shown when they end too early."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from contest import Setting

from promptmill import watchdog

__all__ = ["PeerError", "peer"]

SERVERS = Path(__file__).parent / "servers"

#: How long a peer may take until it answers, in seconds.
START_TIMEOUT_S = 600.0


class PeerError(Exception):
    """A peer does not start."""


@contextmanager
def peer(command: Sequence[str], setting: Setting, is_ready: Callable[[], bool], **variables: str) -> Iterator[None]:
    """A running peer.

    Args:
        command: What runs in the folder of the servers.
        setting: Goes into its environment, as ``PEER_MODEL`` and so on.
        is_ready: Whether it answers.
        variables: Further ones of its environment.

    Raises:
        PeerError: it ended, or did not answer in time; with the end of its output.
    """
    own = {
        "PEER_BROKER": setting.broker_url,
        "PEER_MODEL": str(setting.model),
        "PEER_DTYPE": setting.dtype,
        "PEER_THREADS": str(setting.threads),
        "PEER_SLOTS": str(setting.slots),
        "OMP_NUM_THREADS": str(setting.threads),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryFile() as log:
        process = watchdog.start_watched(
            command, 10.0, env={**inherited, **own, **variables}, cwd=SERVERS, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
                    raise PeerError(f"{command[-1]} does not answer:\n{log.read().decode(errors='replace')}")
                time.sleep(0.2)
            yield
        finally:
            watchdog.ask_to_stop(process)
            with suppress(ProcessLookupError):  # servers that leave processes of theirs behind
                os.killpg(process.pid, signal.SIGKILL)

"""The ledger alone: what its verbs, its sweep and its records cost the broker.

python benchmarks/ledger_cost.py --chunks 1 32 64 --queued 100000 1000000
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import cast

import redis
from rich.console import Console
from rich.table import Table

from promptmill.broker import connect
from promptmill.embedded import EmbeddedBroker
from promptmill.ledger import Claim, Entry, Ledger
from promptmill.names import Names, Priority, lane_name, queue_name
from promptmill.protocol import GenerationRequest, requests_to_wire
from promptmill.settings import Settings

#: Length of one prompt and of one answer, in bytes.
PROMPT_BYTES = 168
ANSWER_BYTES = 200

#: How many of the queued records lose their pointer.
LOST = 55

#: Records entered in one round trip while a long queue is built.
AT_ONCE = 1000

LANE = lane_name(queue_name("bench"), Priority.NORMAL)
LEASE_S = 3600.0


class Stopwatch:
    """Times calls as their caller sees them, and as the broker counts the scripts in them."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.call_us = 0.0
        self.broker_us = 0.0

    @contextmanager
    def time(self, calls: int) -> Iterator[None]:
        """Times a block that makes ``calls`` calls."""
        self._client.config_resetstat()
        started = time.perf_counter()
        yield
        self.call_us = (time.perf_counter() - started) * 1e6 / calls
        self.broker_us = self._client.info("commandstats")["cmdstat_evalsha"]["usec"] / calls


def entries(count: int, chunk: int) -> Iterator[Entry]:
    """``count`` records of ``chunk`` prompts each."""
    wire = requests_to_wire([GenerationRequest(prompt="x" * PROMPT_BYTES)] * chunk)
    for number in range(count):
        yield Entry(f"{number:032x}", LANE, wire, chunk, reply=Names("promptmill:").replies("bench"))


def claim(ledger: Ledger, record_id: str, room: int, score: str = "0") -> Claim:
    """A claim that is granted."""
    granted = ledger.claim(record_id, f"{record_id}/bench", room, LEASE_S, 3, LANE, score)
    if not isinstance(granted, Claim):
        raise RuntimeError(f"{record_id} is {granted}")
    return granted


def time_verbs(client: redis.Redis, ledger: Ledger, chunk: int, rounds: int) -> dict[str, tuple[float, float]]:
    """(µs a call, µs of it in the broker) of each verb, one call a round trip."""
    watch = Stopwatch(client)
    times: dict[str, tuple[float, float]] = {}

    def measure(verb: str, calls: Sequence[Callable[[], object]]) -> None:
        with watch.time(len(calls)):
            for call in calls:
                call()
        times[verb] = (watch.call_us, watch.broker_us)

    records = list(entries(rounds, chunk))
    measure("enter", [lambda entry=entry: ledger.enter([entry]) for entry in records])  # type: ignore[misc]
    claims: list[Claim] = []
    measure("claim", [lambda e=entry: claims.append(claim(ledger, e.record_id, chunk)) for entry in records])  # type: ignore[misc]
    measure("renew, all claims", [lambda: ledger.renew([granted.token for granted in claims], LEASE_S)])
    answers = [(position, False, b"y" * ANSWER_BYTES) for position in range(chunk)]
    one_by_one, at_once = claims[: rounds // 2], claims[rounds // 2 :]
    singly = [(granted, answer) for granted in one_by_one for answer in answers]
    measure(
        "finish, one prompt",
        [lambda g=g, a=a: ledger.finish(g.record_id, g.token, [a], last=a is answers[-1]) for g, a in singly],  # type: ignore[misc]
    )
    measure(
        "finish, whole chunk",
        [lambda g=g: ledger.finish(g.record_id, g.token, answers, last=True) for g in at_once],  # type: ignore[misc]
    )
    return times


def bytes_a_prompt(client: redis.Redis, ledger: Ledger, chunk: int, prompts: int) -> float:
    """Broker memory of a queued prompt, its pointer and its share of the record included."""
    before = used_bytes(client)
    source = entries(prompts // chunk, chunk)
    while batch := list(islice(source, AT_ONCE)):
        ledger.enter(batch)
    return (used_bytes(client) - before) / (prompts // chunk * chunk)


def used_bytes(client: redis.Redis) -> float:
    """Broker memory, without the buffers of connections and of the append-only file."""
    memory = client.info("memory")
    return float(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"])


def empty(client: redis.Redis) -> None:
    """Empties the broker, and waits until its memory is free."""
    client.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]


def time_sweeps(client: redis.Redis, ledger: Ledger, queued: int) -> tuple[list[float], int]:
    """With ``queued`` records of one prompt, the oldest of which have lost their pointers.

    Returns:
        Milliseconds in the broker of the sweep that marks, the one that moves what was lost, and one with nothing to
        do; and how many records were moved.
    """
    source = entries(queued, 1)
    while batch := list(islice(source, AT_ONCE)):
        ledger.enter(batch)
    list_name = f"{queue_name('bench')}\x06\x16{int(Priority.NORMAL)}"
    client.rpop(list_name, LOST)
    popped = f"{LOST:032x}"
    client.rpop(list_name)
    claim(ledger, popped, 1, f"{cast(float, client.zscore(ledger.names.lane(LANE), popped)):.0f}")
    watch = Stopwatch(client)
    times, moved = [], 0
    for _ in range(3):
        client.delete(f"{ledger.names.prefix}sweeper")
        with watch.time(1):
            moved += len(ledger.sweep("bench", interval_s=60.0, grace_s=0.0))
        times.append(watch.broker_us / 1000)
    return times, moved


def main() -> None:
    """Runs the benchmark and prints its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 32, 64], help="prompts a record")
    parser.add_argument("--rounds", type=int, default=400, help="records a chunk size that the verbs are timed on")
    parser.add_argument("--queued", type=int, nargs="*", default=[100_000], help="records that the sweep is timed with")
    arguments = parser.parse_args()

    verbs = Table("chunk", "verb", "µs a call", "of it in the broker", "µs a prompt", title="Verbs")
    memory = Table("chunk", "bytes a prompt", title=f"Broker memory of a queued {PROMPT_BYTES}-byte prompt")
    sweeps = Table("queued", "lost", "marks", "moves", "idle", title="Sweep, ms in the broker")
    with EmbeddedBroker(appendfsync="everysec") as broker, connect(Settings(broker_url=broker.url)) as client:
        ledger = Ledger(client, Names("promptmill:"), patience_s=60.0)
        for chunk in arguments.chunks:
            empty(client)
            for verb, (call_us, broker_us) in time_verbs(client, ledger, chunk, arguments.rounds).items():
                prompts = 1 if verb == "finish, one prompt" else chunk
                if verb.startswith("renew"):
                    prompts *= arguments.rounds
                cells = (f"{call_us:,.0f}", f"{broker_us:,.0f}", f"{call_us / prompts:,.2f}")
                verbs.add_row(str(chunk), verb, *cells)
            empty(client)
            memory.add_row(str(chunk), f"{bytes_a_prompt(client, ledger, chunk, 12_800):,.0f}")
        for queued in arguments.queued:
            empty(client)
            times, moved = time_sweeps(client, ledger, queued)
            sweeps.add_row(f"{queued:,}", str(moved), *(f"{time_ms:.2f}" for time_ms in times))
        server = client.info("server")
    console = Console()
    name = server.get("server_name", "redis")
    console.print(f"{name} {server.get('valkey_version') or server['redis_version']}, {platform.processor() or '?'}")
    console.print(f"{os.cpu_count()} cores, Python {platform.python_version()}, append-only everysec")
    for table in (verbs, memory, sweeps):
        console.print(table)


if __name__ == "__main__":
    main()

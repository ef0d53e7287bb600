"""What goes wrong in a storm. Each method is one fault, may take its time, and runs beside others."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from redis import Redis
from storm_kept import Kept, KeptWorker, send, worker_name
from storm_plan import MODEL, Plan
from storm_recovery import Recoveries, Victim, claimed_by, victim, wait_for_recovery
from storm_submitters import LedgerSubmitter
from test_broker_loss import kill_and_restart

from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names, Priority, again_queue_name, queue_name

__all__ = ["Faults"]

#: For so long after a restart of the broker a recovery may take longer: workers come back one by one, in seconds.
CALM_AFTER_S = 10.0
#: How long a victim that holds prompts is looked for, in seconds.
VICTIM_TIMEOUT_S = 5.0
#: How long to wait until some messages are queued, in seconds.
MESSAGES_TIMEOUT_S = 10.0


def list_of(priority: int) -> str:
    """Where Celery's transport keeps one priority of the model's queue."""
    return queue_name(MODEL) if priority == 0 else f"{queue_name(MODEL)}\x06\x16{priority}"


#: Lists that may be deleted: plain calls are not protected before a worker has taken them.
LISTS = [*(list_of(priority) for priority in Priority if priority), again_queue_name(MODEL)]


@dataclass
class Faults:
    """What can go wrong, and with whom.

    Args:
        plan: The storm's.
        server: The broker.
        broker: A client of it; commands wait for a broker that is away.
        names: The ledger's keys.
        workers: The busy ones.
        idle: A worker of another model.
        idle_submitter: Submits to that one.
        maps: Processes with ``Client.map`` that may be killed.
        tell: Writes a line into the storm's log.
    """

    plan: Plan
    server: EmbeddedBroker
    broker: Redis
    names: Names
    workers: list[KeptWorker]
    idle: KeptWorker
    idle_submitter: LedgerSubmitter
    maps: list[Kept]
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recoveries = Recoveries()
        #: Held while the broker is away, and while a victim is looked at.
        self._restarting = threading.Lock()
        self._restarted_at = float("-inf")
        self._choosing = threading.Lock()
        self._submitting = threading.Lock()
        self._old_messages: list[bytes] = []
        #: Process ids of those that were, and may not be reaped yet.
        self._killed: set[int] = set()

    def kill_worker(self, chance: random.Random) -> None:
        """SIGKILL of a worker that holds prompts, or of its launcher; waits until others have them."""
        give_up_at = time.monotonic() + VICTIM_TIMEOUT_S
        while (found_one := self._kill_one(chance)) is None and time.monotonic() < give_up_at:
            time.sleep(0.1)
        if found_one is None:
            self.tell("kill_worker: nobody holds anything")
            return
        killed_at = time.monotonic()
        killed, found = found_one
        others = [worker for worker in self.workers if worker is not killed]
        ends = sum(worker.ends for worker in others)
        self.tell(f"{found.worker} is killed")
        self.counts["kill_worker"] += 1
        recovery = wait_for_recovery(self.broker, self.names, found, killed_at)
        if self._restarted_at > killed_at - CALM_AFTER_S or self._restarting.locked():
            recovery = replace(recovery, besides="the broker was restarted, too")
        elif sum(worker.ends for worker in others) > ends:
            recovery = replace(recovery, besides="another worker ended, too")
        self.recoveries.all.append(recovery)
        self.tell(str(recovery))

    def _kill_one(self, chance: random.Random) -> tuple[KeptWorker, Victim] | None:
        for worker in chance.sample(self.workers, len(self.workers)):
            with self._restarting:
                pid = worker.worker_pid
                if pid is None or pid in self._killed or worker.impaired or not self._is_busy(worker):
                    continue
                send(pid, signal.SIGSTOP)  # what it holds now is what it dies with
                found = victim(self.broker, self.names, worker_name(pid))
                if not found.held:
                    send(pid, signal.SIGCONT)
                    continue
                self._killed.add(pid)
                if worker.launched and chance.random() < 0.4:
                    worker.send(signal.SIGKILL)
                    send(pid, signal.SIGCONT)  # to see that its launcher is gone
                else:
                    send(pid, signal.SIGKILL)
                return worker, found
        return None

    def terminate_worker(self, chance: random.Random) -> None:
        """SIGTERM: a restart as in a rolling update."""
        give_up_at = time.monotonic() + VICTIM_TIMEOUT_S
        while time.monotonic() < give_up_at:
            worker = chance.choice(self.workers)
            if worker.send(signal.SIGTERM):
                self.counts["terminate_worker"] += 1
                self.tell(f"{worker.name} is asked to end")
                return
            time.sleep(0.1)  # it has just been killed

    def stop_worker(self, chance: random.Random) -> None:
        """SIGSTOP, and SIGCONT when its leases are long gone."""
        with self._impaired(chance) as worker:
            pause_s = self.plan.lease_s + chance.uniform(1.0, 5.0)
            give_up_at = time.monotonic() + VICTIM_TIMEOUT_S
            while not send(pid := worker.worker_pid, signal.SIGSTOP):  # it has just been killed
                if time.monotonic() > give_up_at:
                    return
                time.sleep(0.1)
            self.counts["stop_worker"] += 1
            self.tell(f"{worker.name} is stopped for {pause_s:.1f} s")
            time.sleep(pause_s)
            send(pid, signal.SIGCONT)

    def reset_busy(self, chance: random.Random) -> None:
        """A busy worker's connections are reset, and new ones refused."""
        with self._impaired(chance) as worker:
            self._cut("reset_busy", worker, chance, lambda: worker.proxy.reset(refuse=True))

    def hold_busy(self, chance: random.Random) -> None:
        """A busy worker is cut off by a black hole."""
        with self._impaired(chance) as worker:
            self._cut("hold_busy", worker, chance, worker.proxy.hold)

    def hold_idle(self, chance: random.Random) -> None:
        """A black hole between the broker and a worker that waits: messages are popped into it."""
        with self._submitting:
            self._cut("hold_idle", self.idle, chance, self._hold_and_submit)
            self.idle_submitter.cancel_what_is_due(float("inf"))

    def _hold_and_submit(self) -> None:
        self.idle.proxy.hold()
        for _ in range(self.plan.idle_prompts):
            self.idle_submitter.submit(1)

    def _cut(self, fault: str, worker: KeptWorker, chance: random.Random, cut: Callable[[], None]) -> None:
        pause_s = chance.uniform(*self.plan.cut_s)
        self.tell(f"{worker.name} is cut off ({fault}) for {pause_s:.1f} s")
        cut()
        time.sleep(pause_s)
        if chance.random() < 0.5:
            worker.proxy.reset()
        worker.proxy.heal()
        self.counts[fault] += 1

    def kill_client(self, chance: random.Random) -> None:
        """SIGKILL of a process in the middle of a map."""
        alive = [client for client in self.maps if not client.is_done]
        killed = bool(alive) and chance.choice(alive).send(signal.SIGKILL)
        self.counts["kill_client"] += killed
        self.tell("a client is killed" if killed else "no client to kill")

    def kill_broker(self, _chance: random.Random) -> None:
        """SIGKILL of the broker, and a start on the same data a second later."""
        with self._restarting:
            self.tell("the broker is killed")
            kill_and_restart(self.server, None)
            self._restarted_at = time.monotonic()
            self.counts["kill_broker"] += 1
            self.tell("the broker is back")

    def delete_queue(self, chance: random.Random) -> None:
        """Lists of the queue are gone, with all messages in them."""
        self._wait_for_messages(LISTS)
        lists = [name for name in LISTS if chance.random() < 0.8]
        found = sum(self.broker.llen(name) for name in lists)
        self.broker.delete("none", *lists)
        self.counts["delete_queue"] += 1
        self.counts["(messages deleted)"] += found
        self.tell(f"{len(lists)} lists are deleted, with {found} messages")

    def publish_twice(self, chance: random.Random) -> None:
        """Messages that are queued are published once more, and some of long ago."""
        lists = [queue_name(MODEL), *LISTS]
        self._wait_for_messages(lists)
        count = 0
        for name in lists:
            messages = self.broker.lrange(name, 0, 20)
            again = [*messages, *chance.sample(self._old_messages, min(3, len(self._old_messages)))]
            self._old_messages += messages[:5]
            if again:
                chance.choice([self.broker.lpush, self.broker.rpush])(name, *again)
            count += len(again)
        self.counts["publish_twice"] += 1
        self.counts["(messages published twice)"] += count
        self.tell(f"{count} messages are published once more")

    def _wait_for_messages(self, lists: list[str]) -> None:
        give_up_at = time.monotonic() + MESSAGES_TIMEOUT_S
        while not any(self.broker.llen(name) for name in lists) and time.monotonic() < give_up_at:
            time.sleep(0.05)

    @contextmanager
    def _impaired(self, chance: random.Random) -> Iterator[KeptWorker]:
        """A worker to be stopped or cut off, one that holds prompts if there is any; the others are left alone."""
        with self._choosing:
            while len(free := [worker for worker in self.workers if not worker.impaired]) < len(self.workers) - 1:
                time.sleep(0.1)
            worker = chance.choice([worker for worker in free if self._is_busy(worker)] or free)
            worker.impaired = True
        try:
            yield worker
        finally:
            worker.impaired = False

    def _is_busy(self, worker: KeptWorker) -> bool:
        pid = worker.worker_pid
        return pid is not None and bool(claimed_by(self.broker, self.names, worker_name(pid)))

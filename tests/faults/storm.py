"""A storm: many submitters, workers that are killed, stopped and cut off, a broker that is killed, lost messages.

All of it is drawn from one seed, and told with its time. It ends with quiet, until all is answered, and an account.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import redis
import storm_submitters
from brokers import free_port
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from storm_account import account_of_ledger, account_of_map, dead_letters, keys_left, messages_left
from storm_calls import PlainCaller
from storm_faults import Faults
from storm_kept import Kept, KeptWorker
from storm_outcome import Outcome
from storm_plan import MODEL, Plan
from storm_submitters import LedgerSubmitter, Share, open_journal
from workers import START_TIMEOUT_S, WorkerProcess, a_process, wait_until

import promptmill
from promptmill.embedded import EmbeddedBroker
from promptmill.names import Names, queue_name

__all__ = ["run_storm"]

IDLE_MODEL = "idle"
#: How long lanes may take to be swept when all is answered, in seconds.
SWEPT_AFTER_S = 20.0


class Log:
    """Lines with the time since the storm began; shown as they come, too, if ``show`` does that."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        self._path = path
        self._show = show
        self._began_at = time.monotonic()

    def __call__(self, line: str) -> None:
        line = f"{time.monotonic() - self._began_at:8.1f} {line}"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._show(line)


def run_storm(plan: Plan, folder: Path, show: Callable[[str], None]) -> Outcome:
    """Runs a storm to its end.

    Args:
        plan: What it is to be.
        folder: For the broker's data, the logs and the journals.
        show: Is given each line of the storm's log.
    """
    show(f"storm of seed {plan.seed}: STORM_SEED={plan.seed} repeats it; its files are in {folder}")
    show(f"the promptmill that it meets is in {Path(promptmill.__file__).parent}")
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedBroker(folder / "data", port=free_port(), appendfsync="always"))
        return _Storm(plan, folder, server, stack, show).run()


class _Storm:
    def __init__(
        self, plan: Plan, folder: Path, server: EmbeddedBroker, stack: ExitStack, show: Callable[[str], None]
    ) -> None:
        self.plan = plan
        assert server.tcp_url is not None
        self.url = server.tcp_url
        self.names = Names("promptmill:")
        self.broker = patient_client(self.url)
        workers = [
            KeptWorker(self.url, folder, f"worker{number}", options, number == 3, self._chance(f"worker{number}"))
            for number, options in enumerate(plan.worker_options())
        ]
        idle_options = ("--served-name", IDLE_MODEL, *plan.options)
        idle = KeptWorker(self.url, folder, "idle", idle_options, False, self._chance("idle"))
        self.workers = [*workers, idle]
        for worker in self.workers:
            stack.callback(worker.close)
        with promptmill.Client(self.url) as client:
            wait_until(lambda: len(client.fleet().workers) == len(self.workers), "all workers serve", START_TIMEOUT_S)
        self.tell = Log(folder / "storm.log", show)
        self.shares = plan.shares(self.url, time.time(), folder)
        self.idle_share = Share(
            **{
                **vars(self.shares[0]),
                "owner": "idle",
                "way": "ledger",
                "model": IDLE_MODEL,
                "prompts": plan.idle_prompts * plan.faults.get("hold_idle", 0),
                "poison": (),
                "journal": str(folder / "idle.journal"),
            }
        )
        journal = stack.enter_context(open_journal(self.idle_share))
        self.submitters = {share.owner: self._keep_submitter(share, folder) for share in self.shares}
        for submitter in self.submitters.values():
            stack.callback(submitter.close)
        self.caller = PlainCaller(self.url, MODEL, plan.plain_calls, 0.9 * plan.seconds, self._chance("calls"))
        stack.callback(self.caller.close)
        self.faults = Faults(
            plan,
            server,
            self.broker,
            self.names,
            workers,
            idle,
            LedgerSubmitter(self.idle_share, journal),
            [self.submitters[share.owner] for share in self.shares if share.way == "map" and not share.quits_after],
            self.tell,
        )

    def run(self) -> Outcome:
        """Lets all go wrong, waits for quiet, and makes the account."""
        self._rage()
        self.tell("quiet")
        began_at = time.monotonic()
        is_over = self._wait(self._all_is_answered, self.plan.quiet_s)
        quiet_s = time.monotonic() - began_at
        self.tell("all is answered" if is_over else "something is stuck")
        self._wait(lambda: not self.broker.hlen("unacked"), self.plan.celery_quiet_s)
        self._wait(lambda: not keys_left(self.broker, self.names) and not self._messages_left(), SWEPT_AFTER_S)
        with ThreadPoolExecutor() as pool:
            list(pool.map(KeptWorker.close, self.workers))
        return self._outcome(quiet_s)

    def _rage(self) -> None:
        began_at = time.monotonic()
        under_way: list[Future[None]] = []
        with ThreadPoolExecutor(32) as pool:
            for event in self.plan.events():
                time.sleep(max(0.0, began_at + event.at_s - time.monotonic()))
                under_way.append(pool.submit(getattr(self.faults, event.fault), event.chance))
            time.sleep(max(0.0, began_at + self.plan.seconds - time.monotonic()))
        for fault in under_way:
            fault.result()

    def _all_is_answered(self) -> bool:
        return (
            all(submitter.is_done for submitter in self.submitters.values())
            and self.broker.zcard(self.names.prefix + "deadlines") == 0
            and not self._messages_left()
        )

    def _messages_left(self) -> dict[str, int]:
        return messages_left(self.broker, [queue_name(MODEL), queue_name(IDLE_MODEL)])

    def _outcome(self, quiet_s: float) -> Outcome:
        ledger = account_of_ledger(
            [*(share for share in self.shares if share.way == "ledger"), self.idle_share], self.broker, self.names
        )
        mapped = account_of_map([share for share in self.shares if share.way == "map"])
        letters = dead_letters(self.broker, self.names)
        return Outcome(
            seed=self.plan.seed,
            accounts=[mapped, ledger, self.caller.account(self.broker, self.names)],
            recoveries=self.faults.recoveries,
            faults=self.faults.counts,
            innocent_letters=sum(not letter.is_poison for letter in letters),
            letters=len(letters),
            missing_letters=ledger.poison - {letter.task for letter in letters},
            keys_left=keys_left(self.broker, self.names),
            messages_left=self._messages_left(),
            failures=[code for submitter in self.submitters.values() for code in submitter.failures],
            starts=sum(worker.starts for worker in self.workers),
            storm_s=self.plan.seconds,
            quiet_s=quiet_s,
        )

    def _keep_submitter(self, share: Share, folder: Path) -> Kept:
        command = [sys.executable, storm_submitters.__file__]
        paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**share.environment, "PYTHONPATH": os.pathsep.join(paths)}

        def start(_run: int) -> AbstractContextManager[WorkerProcess]:
            return a_process(command, folder / f"{share.owner}.log", **environment)

        return Kept(start, self._chance(share.owner), until_done=True)

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self.plan.seed} {what}")

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until ``condition`` holds; returns whether it did in time."""
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > give_up_at:
                return False
            time.sleep(0.5)
        return True


def patient_client(url: str) -> redis.Redis:
    """A client whose commands wait for a broker that is away."""
    errors = [redis.BusyLoadingError, redis.ConnectionError, redis.TimeoutError]
    return redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.2), 300), retry_on_error=errors)

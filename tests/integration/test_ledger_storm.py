"""The ledger under any order of events: hypothesis plays submitters, workers, deaths and losses on a real broker."""

from __future__ import annotations

import itertools
import os
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from test_ledger import CANCELLED, Bench

from promptmill.errors import TaskExpiredError, TooManyDeliveriesError
from promptmill.ledger import Claim
from promptmill.names import Names
from promptmill.protocol import answer_from_wire

#: More for a thorough run by hand, which then also takes the minutes to make a failure small.
EXAMPLES = int(os.environ.get("LEDGER_STORM_EXAMPLES", "0"))

_run = itertools.count()

#: Errors that the broker's scripts write themselves.
BROKERS_OWN = (TaskExpiredError, TooManyDeliveriesError)

ROOM = st.integers(1, 4)
WHICH = st.integers(0, 1_000)


class LedgerStorm(RuleBasedStateMachine):
    """A model of what may be, beside what the broker holds.

    A claim is *held* until it is finished, put back, swept or settled; then its worker may still wake up and answer.
    """

    url = ""

    def __init__(self) -> None:
        super().__init__()
        run = next(_run)
        self.bench = Bench(self.url, Names(f"storm{run}:"), f"storm.{run}")
        #: Prompts of each record.
        self.counts: dict[str, int] = {}
        self.plain: set[str] = set()
        #: Which record an idempotency key was given to last, and its digest.
        self.keys: dict[str, tuple[str, str]] = {}
        #: Every accepted answer, as it was given first; None where the broker made it.
        self.answers: dict[tuple[str, int], bytes | None] = {}
        #: Records that are over.
        self.ended: set[str] = set()
        self.held: list[Claim] = []
        #: Records past their deadline: what is held of them may still be finished.
        self.overdue: set[str] = set()
        #: Tokens of claims whose one prompt runs alone.
        self.started: set[str] = set()
        self.lost: list[Claim] = []
        self.names = itertools.count()

    # Submitters.

    @rule(count=st.integers(1, 6), priority=st.sampled_from([3, 6, 9]), submitter=st.sampled_from("abc"))
    def enter(self, count: int, priority: int, submitter: str) -> None:
        record_id = f"r{len(self.counts)}"
        self.counts[record_id] = count
        assert self.bench.enter(record_id, count, priority, submitter=submitter) == "entered"

    @rule(key=st.sampled_from("kl"), digest=st.sampled_from("de"))
    def enter_with_a_key(self, key: str, digest: str) -> None:
        record_id = f"r{len(self.counts)}"
        holder, held_digest = self.keys.get(key, ("", ""))
        if self._is_alive_or_succeeded(holder):
            expected = f"same {holder}" if held_digest == digest else "conflict"
        else:
            expected = "entered"
            self.counts[record_id] = 1
            self.keys[key] = (record_id, digest)
        assert self.bench.enter(record_id, key=key, digest=digest) == expected

    @rule()
    def enter_plain_call(self) -> None:
        record_id = f"r{len(self.counts)}"
        self.counts[record_id] = 1
        self.plain.add(record_id)
        assert self.bench.enter_plain_call(record_id) == "entered"

    @precondition(lambda self: self.counts)
    @rule(which=WHICH)
    def enter_again(self, which: int) -> None:
        record_id = self._record(which)
        complete = len(self._answered(record_id)) == self.counts[record_id]
        assert self.bench.enter(record_id, self.counts[record_id]) == ("answered" if complete else "known")

    @precondition(lambda self: self.counts)
    @rule(which=WHICH, positions=st.sets(st.integers(0, 8)))
    def settle(self, which: int, positions: set[int]) -> None:
        record_id = self._record(which)
        wanted = positions or set(range(self.counts[record_id]))
        left = {p for p in wanted if p < self.counts[record_id]} - self._answered(record_id)
        settled = self.bench.ledger.settle(record_id, CANCELLED, sorted(positions))
        assert settled == (0 if record_id in self.ended else len(left))
        if settled:
            self._accept(record_id, dict.fromkeys(left, CANCELLED))
            self._end_if_complete(record_id, by_worker=False)

    # Workers.

    @rule(room=ROOM)
    def work(self, room: int) -> None:
        """A worker pops the next pointer and claims what it leads to."""
        pointer = self.bench.pop()
        if pointer is not None:
            self._claim(pointer, room)

    @precondition(lambda self: self.counts)
    @rule(which=WHICH, room=ROOM)
    def work_without_pointer(self, which: int, room: int) -> None:
        """A pointer of long ago turns up, or a plain call is claimed by the worker that has just entered it."""
        self._claim((self._record(which), "", "0", 1), room)

    @precondition(lambda self: self.held)
    @rule(which=WHICH, room=ROOM)
    def claim_again(self, which: int, room: int) -> None:
        """The reply to a claim was lost."""
        claim = self.held[which % len(self.held)]
        again = self.bench.ledger.claim(claim.record_id, claim.token, room, 60.0, 3)
        left = self._unanswered(claim)
        if claim.record_id in self.overdue:
            assert again == "gone"
        elif left or claim.record_id in self.plain:
            assert isinstance(again, Claim)
            assert set(again.positions) == (left or {0})
        elif isinstance(again, Claim):  # all of it was cancelled meanwhile: then it is a claim like a new one
            self.held.remove(claim)
            self._check_claim(again, room)
            self.held.append(again)

    @precondition(lambda self: self.held or self.lost)
    @rule(which=WHICH, share=st.integers(0, 8), error=st.booleans())
    def finish(self, which: int, share: int, error: bool) -> None:
        """A worker answers some or all of its prompts, whether the claim is still its own or not."""
        claims = self.held + self.lost
        claim = claims[which % len(claims)]
        record_id = claim.record_id
        owns = claim in self.held
        sent = claim.positions[:share]
        last = share >= len(claim.positions)
        wire = f'"{next(self.names)}"'.encode()
        missing = self.bench.finish(claim, dict.fromkeys(sent, wire), error, last)
        if record_id not in self.ended and (owns or not error):
            self._accept(record_id, dict.fromkeys(set(sent) - self._answered(record_id), wire))
        self._end_if_complete(record_id, by_worker=True)
        assert missing == ()
        if last and owns and claim in self.held and record_id not in self.plain:
            self._lose(claim)

    @precondition(lambda self: self.held or self.lost)
    @rule(which=WHICH)
    def put_back(self, which: int) -> None:
        claims = self.held + self.lost
        claim = claims[which % len(claims)]
        back = self.bench.ledger.put_back(claim.record_id, claim.token)
        if claim not in self.held:
            assert back == 0
            return
        assert back == (1 if claim.record_id in self.plain else len(self._unanswered(claim)))
        self._lose(claim)

    @precondition(lambda self: any(claim.alone for claim in self.held))
    @rule(which=WHICH)
    def start_alone(self, which: int) -> None:
        claims = [claim for claim in self.held if claim.alone]
        claim = claims[which % len(claims)]
        assert self.bench.ledger.start(claim.record_id, claim.token)
        self.started.add(claim.token)

    @precondition(lambda self: self.held or self.lost)
    @rule()
    def renew(self) -> None:
        tokens = [claim.token for claim in self.held + self.lost]
        assert set(self.bench.ledger.renew(tokens, 60.0)) == {claim.token for claim in self.lost}

    @precondition(lambda self: self.plain)
    @rule(which=WHICH)
    def store_result(self, which: int) -> None:
        """Celery has stored the result of a plain call."""
        record_id = sorted(self.plain)[which % len(self.plain)]
        if (record_id, 0) in self.answers:
            self.bench.ledger.drop(record_id)
            self._end(record_id)

    # Deaths and losses.

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def a_worker_dies(self, which: int) -> None:
        self.bench.expire_lease(self.held[which % len(self.held)])

    @rule()
    def a_pointer_is_lost(self) -> None:
        self.bench.pop()

    @rule()
    def the_queue_is_purged(self) -> None:
        self.bench.redis.delete(*self.bench.lists())

    @rule(which=WHICH)
    def a_pointer_is_published_twice(self, which: int) -> None:
        name = self.bench.lists()[which % 5]
        message = self.bench.redis.lindex(name, -1)
        if message is not None:
            self.bench.redis.rpush(name, message)

    @precondition(lambda self: set(self.counts) - self.ended)
    @rule(which=WHICH)
    def a_deadline_passes(self, which: int) -> None:
        alive = sorted(set(self.counts) - self.ended)
        record_id = alive[which % len(alive)]
        if record_id not in self.plain or (record_id, 0) not in self.answers:
            self.bench.expire_record(record_id)
            self.overdue.add(record_id)
            self.sweep()

    @rule()
    def sweep(self) -> None:
        leases = self.bench.redis.zrangebyscore(self.bench.names.leases, "-inf", 1)
        swept = [claim for claim in self.held if claim.token.encode() in leases]
        pointed_at = self._pointed_at()
        waiting = {record_id: self.bench.open(record_id) or frozenset() for record_id in self.counts}
        # Answered by a worker that was lost, and past the deadline: nobody comes for this answer.
        unfetched = {r for r in self.plain & self.overdue if waiting[r] and len(self._answered(r)) == self.counts[r]}
        report = [line.split() for line in self.bench.sweep()]
        for record_id in unfetched:
            self._end(record_id)
        assert max(Counter(map(tuple, report)).values(), default=1) == 1
        for claim in swept:
            self._lose(claim)
            if not self._unanswered(claim):
                self.overdue.discard(claim.record_id)  # an answered call is queued once more, with a new deadline
            self._accept_conviction(claim)
        for reason, record_id in report:
            if reason == "deadline":
                left = waiting[record_id] - self._answered(record_id)
                self._accept(record_id, dict.fromkeys(left))
                self._end_if_complete(record_id, by_worker=False)
            elif reason == "pointer":
                assert record_id not in pointed_at, "a false alarm"

    # What always holds.

    @invariant()
    def the_first_answer_stays(self) -> None:
        snapshots = dict(zip(self.counts, self.bench.ledger.look(list(self.counts)), strict=True))
        for record_id, snapshot in snapshots.items():
            assert set(snapshot.answers) == self._answered(record_id)
            for position, wire in snapshot.answers.items():
                expected = self.answers[record_id, position]
                assert wire == expected or (expected is None and isinstance(answer_from_wire(wire), BROKERS_OWN))
            assert (snapshot.open is None) == (record_id in self.ended)

    @invariant()
    def every_answer_is_told_once(self) -> None:
        told = Counter((record_id, position) for record_id, position, _ in self.bench.stream())
        assert told == Counter(key for key in self.answers if key[0] not in self.plain)

    def teardown(self) -> None:
        """All workers die; then one comes that works off everything, and nothing is left over."""
        for claim in self.held:
            self.bench.expire_lease(claim)
        for _ in range(4 * len(self.counts) + 4):
            if self.ended == set(self.counts):
                break
            while (pointer := self.bench.pop()) is not None:
                claim = self._claim(pointer, room=3)
                if claim is not None:
                    self.finish_for_good(claim)
            self.sweep()
        for _ in range(2):
            self.sweep()
        assert self._all_prompts() == set(self.answers)
        self.the_first_answer_stays()
        self.every_answer_is_told_once()
        left = {key for key in self.bench.keys() if not key.startswith(("answers:", "key:", "waiting:"))}  # noqa: SIM118
        assert left <= {
            *("clock", "totals", "lanes", "watermarks", "sweeper", "swept", "memory", "deaths"),
            *("replies:client", "dead_letters"),
        }
        self.bench.redis.delete(*self.bench.redis.scan_iter(f"{self.bench.names.prefix}*"), *self.bench.lists())
        self.bench.redis.close()

    def finish_for_good(self, claim: Claim) -> None:
        self.bench.finish(claim, dict.fromkeys(claim.positions, b'"end"'), last=True)
        new = set(claim.positions) - self._answered(claim.record_id)
        self._accept(claim.record_id, dict.fromkeys(new, b'"end"'))
        if claim.record_id in self.plain:
            self.bench.ledger.drop(claim.record_id)
            self._end(claim.record_id)
        else:
            self._lose(claim)
            self._end_if_complete(claim.record_id, by_worker=True)

    # The model.

    def _pointed_at(self) -> set[str]:
        """Records that have a pointer in the queue, whichever it is."""
        return {owner for _, lane, score, _ in self.bench.pointers() if lane for owner in self._waiting(lane, score)}

    def _waiting(self, lane: str, score: str) -> list[str]:
        """The record that waits for a pointer."""
        return [owner.decode() for owner in self.bench.redis.zrangebyscore(self.bench.names.lane(lane), score, score)]

    def _next(self, lane: str) -> list[str]:
        """The record whose turn it is."""
        return [first.decode() for first in self.bench.redis.zrange(f"{self.bench.names.prefix}turns:{lane}", 0, 0)]

    def _record(self, which: int) -> str:
        return list(self.counts)[which % len(self.counts)]

    def _all_prompts(self) -> set[tuple[str, int]]:
        return {(record_id, position) for record_id, count in self.counts.items() for position in range(count)}

    def _answered(self, record_id: str) -> set[int]:
        return {position for known, position in self.answers if known == record_id}

    def _unanswered(self, claim: Claim) -> set[int]:
        return set(claim.positions) - self._answered(claim.record_id)

    def _is_alive_or_succeeded(self, record_id: str) -> bool:
        """Errors of the storm's workers don't look like errors, so that they count as a success."""
        if (record_id, 0) in self.answers:
            return self.answers[record_id, 0] not in (None, CANCELLED)
        return record_id in self.counts and record_id not in self.overdue

    def _claim(self, pointer: tuple[str, str, str, int], room: int) -> Claim | None:
        record_id, lane, score, _ = pointer
        if lane and not lane.endswith(":again|0"):
            # A turn of the lane, for the record that is the next of all.
            granted = self._next(lane) if self._waiting(lane, score) else []
        else:
            granted = [record_id] if record_id not in self.ended | self.overdue else []
        claim = self.bench.claim(record_id, f"c{next(self.names)}", room, lane, score)
        if not isinstance(claim, Claim):
            assert (claim == "gone") == (not granted)
            return None
        assert [claim.record_id] == granted
        self._check_claim(claim, room)
        self.held.append(claim)
        return claim

    def _check_claim(self, claim: Claim, room: int) -> None:
        assert claim.record_id not in self.ended
        assert 0 < len(claim.positions) <= (1 if claim.alone else room)
        assert len(set(claim.positions)) == len(claim.positions)
        for other in self.held:
            if other.record_id == claim.record_id:
                assert not self._unanswered(other) & set(claim.positions), "one prompt, two holders"
        if claim.record_id in self.plain:
            assert (claim.answer is not None) == ((claim.record_id, 0) in self.answers)
        else:
            assert not self._answered(claim.record_id) & set(claim.positions), "an answered prompt handed out again"

    def _accept_conviction(self, claim: Claim) -> None:
        """A prompt that died alone may be taken for the cause."""
        wire = self.bench.answers(claim.record_id).get(claim.positions[0])
        if claim.token in self.started and self._unanswered(claim) and wire is not None:
            assert isinstance(answer_from_wire(wire), TooManyDeliveriesError)
            self._accept(claim.record_id, {claim.positions[0]: None})
            self._end_if_complete(claim.record_id, by_worker=False)

    def _accept(self, record_id: str, answers: dict[int, bytes] | dict[int, None]) -> None:
        for position, wire in answers.items():
            assert (record_id, position) not in self.answers
            self.answers[record_id, position] = wire

    def _lose(self, claim: Claim) -> None:
        self.held.remove(claim)
        self.lost.append(claim)

    def _end(self, record_id: str) -> None:
        self.ended.add(record_id)
        for claim in [claim for claim in self.held if claim.record_id == record_id]:
            self._lose(claim)

    def _end_if_complete(self, record_id: str, by_worker: bool) -> None:
        """Ends a record in the model; a plain call's stays, but one that ended from outside has no holder any more."""
        if len(self._answered(record_id)) < self.counts[record_id] or record_id in self.ended:
            return
        if record_id not in self.plain:
            self._end(record_id)
        elif not by_worker:
            self.overdue.discard(record_id)
            for claim in [claim for claim in self.held if claim.record_id == record_id]:
                self._lose(claim)


def test_whatever_happens_every_prompt_is_answered_once_and_nothing_is_left_over(any_broker_url: str) -> None:
    storm = type("Storm", (LedgerStorm,), {"url": any_broker_url})
    run_state_machine_as_test(
        storm,
        settings=settings(
            max_examples=EXAMPLES or 30,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

"""Prompts that wait for a slot, before an engine whose requests end when a test says so."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from promptmill.names import Priority
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill_worker.echo import FAULT_DIE, EchoEngine
from promptmill_worker.engine import EngineDiedError, OnText
from promptmill_worker.settings import EngineSettings
from promptmill_worker.waiting_room import WaitingRoom

ask = GenerationRequest.of


class Stage(EchoEngine):
    """Runs each request until it is told to end it; those whose prompt begins with "quick" end at once."""

    def __init__(self, max_batch: int) -> None:
        super().__init__(EngineSettings.read({}, model="echo", engine="echo", max_batch=max_batch))
        #: All prompts in the order in which they came.
        self.order: list[str] = []
        self.inside: dict[str, Future[Any]] = {}
        self.told: dict[str, OnText | None] = {}

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[Any]:
        prompt = str(request.prompt)
        if prompt == "unheard of":
            raise RuntimeError("an engine must not do this")
        self.order.append(prompt)
        if prompt.startswith("quick") or prompt == FAULT_DIE or self.failure is not None:
            return super().submit(request)
        future: Future[Any] = Future()
        self.inside[prompt] = future
        self.told[prompt] = on_text
        future.add_done_callback(lambda _: self.inside.pop(prompt))
        return future

    def end(self, prompt: str) -> None:
        self.inside[prompt].set_result(super().submit(ask(prompt)).result())

    def end_choice(self, prompt: str) -> None:
        assert self.on_choice is not None
        self.on_choice(self.inside[prompt])

    def resize(self, max_batch: int) -> None:
        self.info = self.info.model_copy(update={"max_batch": max_batch})

    def die(self) -> None:
        self._failure = RuntimeError("a step failed")
        for future in list(self.inside.values()):
            future.set_exception(EngineDiedError("the engine died"))

    def partial_text(self, future: Future[GenerationResult]) -> str:
        return next(prompt for prompt, known in self.inside.items() if known is future)


class Room:
    """A waiting room before a stage."""

    def __init__(self, max_batch: int) -> None:
        self.stage = Stage(max_batch)
        self.waiting_room = WaitingRoom(self.stage)

    def submit(self, *prompts: str, **rank: Any) -> list[Future[GenerationResult]]:
        return [self.waiting_room.submit(ask(prompt), **rank) for prompt in prompts]


def test_no_more_than_a_batch_is_in_the_engine_and_the_next_goes_in_before_the_last_has_quite_ended() -> None:
    room = Room(2)
    futures = room.submit("a", "b", "c", "d")
    assert (list(room.stage.inside), room.waiting_room.waiting) == (["a", "b"], 2)
    seen: list[list[str]] = []
    futures[1].add_done_callback(lambda _: seen.append(list(room.stage.inside)))
    room.stage.end("b")
    assert seen == [["a", "c"]]
    assert (futures[1].result().text, room.waiting_room.waiting) == ("b", 1)
    for prompt in ("c", "a", "d"):
        room.stage.end(prompt)
    assert [future.result().text for future in futures] == ["a", "b", "c", "d"]


def test_the_urgent_goes_in_with_the_next_free_slot() -> None:
    room = Room(1)
    room.submit("first", *(f"low {number}" for number in range(50)), priority=Priority.LOW)
    room.submit("second turn", turn=2.0)
    room.submit("first turn", turn=1.0)
    room.submit("urgent", priority=Priority.HIGH, turn=9.0)
    for expected in ("first", "urgent", "first turn", "second turn", "low 0", "low 1"):
        room.stage.end(expected)


def test_one_that_is_cancelled_while_it_waits_never_reaches_the_engine() -> None:
    room = Room(1)
    _, gone, after = room.submit("a", "gone", "after")
    assert gone.cancel()
    assert room.waiting_room.waiting == 1
    room.stage.end("a")
    room.stage.end("after")
    assert (room.stage.order, after.result().text) == (["a", "after"], "after")


def test_one_that_is_cancelled_in_the_engine_leaves_it_and_makes_room() -> None:
    room = Room(1)
    at_once, waited, last = room.submit("at once", "waited", "last")
    assert at_once.cancel()
    assert list(room.stage.inside) == ["waited"]
    assert waited.cancel()
    assert list(room.stage.inside) == ["last"]
    with pytest.raises(CancelledError):
        waited.result()
    assert not last.done()


def test_an_engine_that_dies_ends_those_that_wait_and_they_have_not_begun() -> None:
    room = Room(2)
    futures = room.submit("a", "b", "c", "d", "e")
    room.stage.end("a")
    room.stage.die()
    for future in futures[1:]:
        assert isinstance(future.exception(timeout=0), EngineDiedError)
    assert [room.waiting_room.has_begun(future) for future in futures] == [True, True, True, False, False]
    assert room.waiting_room.waiting == 0
    [late] = room.submit("late")
    assert isinstance(late.exception(timeout=0), EngineDiedError)


def test_one_under_which_the_engine_dies_as_it_goes_in_has_begun() -> None:
    room = Room(1)
    at_its_death: list[bool] = []
    first, deadly, behind = room.submit("first", FAULT_DIE, "behind")
    behind.add_done_callback(lambda _: at_its_death.append(room.waiting_room.has_begun(deadly)))
    room.stage.end("first")
    assert isinstance(deadly.exception(timeout=0), EngineDiedError)
    assert at_its_death == [True]
    assert [room.waiting_room.has_begun(future) for future in (first, deadly, behind)] == [True, True, False]


def test_a_batch_that_shrinks_lets_fewer_in_and_one_that_grows_more() -> None:
    room = Room(3)
    room.submit("a", "b", "c", "d", "e", "f", "g")
    room.stage.resize(1)
    room.stage.end("a")
    room.stage.end("b")
    assert list(room.stage.inside) == ["c"]
    room.stage.end("c")
    assert list(room.stage.inside) == ["d"]
    room.stage.resize(3)
    room.stage.end("d")
    assert list(room.stage.inside) == ["e", "f", "g"]


def test_each_choice_takes_a_slot_and_gives_it_back_when_it_ends() -> None:
    room = Room(3)
    room.waiting_room.submit(ask("two", n=2))
    room.submit("one", "waits", "waits too")
    assert list(room.stage.inside) == ["two", "one"]
    room.stage.end_choice("two")
    assert list(room.stage.inside) == ["two", "one", "waits"]
    room.stage.end("two")
    assert list(room.stage.inside) == ["one", "waits", "waits too"]


def test_more_choices_than_a_batch_has_slots_go_in_with_the_first_free_one() -> None:
    room = Room(2)
    room.submit("a", "b")
    room.waiting_room.submit(ask("many", n=5))
    room.submit("c", "d")
    room.stage.end("a")
    assert list(room.stage.inside) == ["b", "many"]
    room.stage.end("b")
    for _ in range(3):
        room.stage.end_choice("many")
    assert list(room.stage.inside) == ["many"]
    room.stage.end_choice("many")
    assert list(room.stage.inside) == ["many", "c"]


def test_thousands_that_end_at_once_go_through_one_slot() -> None:
    room = Room(1)
    futures = room.submit("slow", *(f"quick {number}" for number in range(5_000)))
    room.stage.end("slow")
    assert all(future.done() for future in futures)
    assert room.stage.order[1:] == [f"quick {number}" for number in range(5_000)]


def test_an_engine_that_raises_fails_that_prompt_alone_and_the_slot_is_free() -> None:
    room = Room(1)
    _, unheard, after = room.submit("a", "unheard of", "after")
    room.stage.end("a")
    assert isinstance(unheard.exception(timeout=0), RuntimeError)
    room.stage.end("after")
    assert after.result(timeout=0).text == "after"


def test_what_is_told_of_one_that_waits_is_nothing_and_then_what_the_engine_tells() -> None:
    room = Room(1)
    pieces: list[str] = []
    [first] = room.submit("first")
    second = room.waiting_room.submit(ask("second"), lambda _, piece: pieces.append(piece))
    time.sleep(0.01)
    assert [room.waiting_room.partial_text(future) for future in (first, second)] == ["first", ""]
    room.stage.end("first")
    told = room.stage.told["second"]
    assert told is not None
    told(0, "piece")
    assert (room.waiting_room.partial_text(second), pieces) == ("second", ["piece"])
    assert room.waiting_room.waited_s(first) == 0.0
    assert room.waiting_room.waited_s(second) >= 0.01


def test_each_window_waits_for_itself_and_the_urgent_goes_between_them() -> None:
    room = Room(1)
    windows = room.waiting_room.submit(ask("w0 w1 w2", window_tokens=1), priority=Priority.LOW)
    eventually(lambda: "w0" in room.stage.inside)
    [urgent] = room.submit("urgent", priority=Priority.HIGH)
    eventually(lambda: room.waiting_room.waiting == 1)
    assert room.waiting_room.has_begun(windows)
    room.stage.end("w0")
    room.stage.end("urgent")
    for window in (" w1", " w2"):
        eventually(lambda window=window: window in room.stage.inside)
        room.stage.end(window)
    assert urgent.result(timeout=0).text == "urgent"
    result = windows.result(timeout=10)
    assert (result.text, room.stage.order) == ("w0\nw1\nw2", ["w0", "urgent", " w1", " w2"])


def test_windows_that_only_waited_have_not_begun_when_the_engine_dies() -> None:
    room = Room(1)
    room.submit("a")
    windows = room.waiting_room.submit(ask("w0 w1", window_tokens=1))
    eventually(lambda: room.waiting_room.waiting == 1)
    room.stage.die()
    assert isinstance(windows.exception(timeout=10), EngineDiedError)
    assert not room.waiting_room.has_begun(windows)


class Crowded(EchoEngine):
    """Counts how many run at once."""

    def __init__(self) -> None:
        super().__init__(EngineSettings.read({}, model="e", engine="echo", max_batch=8, echo_tokens_per_s=2_000))
        self.most = 0

    def submit(self, request: GenerationRequest, on_text: OnText | None = None) -> Future[Any]:
        future = super().submit(request, on_text)
        self.most = max(self.most, self.running)
        return future


@pytest.fixture
def crowded() -> Iterator[Crowded]:
    with Crowded() as engine:
        yield engine


def test_many_threads_that_submit_and_cancel_lose_nobody_and_no_slot(crowded: Crowded) -> None:
    waiting_room = WaitingRoom(crowded)
    futures: list[Future[GenerationResult]] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(300):
            prompt = chance.choice(["one", "one two three", "one two"])
            rank = {"priority": chance.choice(list(Priority)), "turn": chance.random()}
            future = waiting_room.submit(ask(prompt), **rank)
            futures.append(future)
            if chance.random() < 0.3:
                futures[chance.randrange(len(futures))].cancel()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for future in futures:
        if not future.cancelled():
            assert future.result(timeout=60).finish_reason == "stop"
    assert (len(futures), waiting_room.waiting) == (2_400, 0)
    assert crowded.most <= 8
    eventually(lambda: crowded.running == 0)
    begun = [waiting_room.submit(ask("word " * 10_000)) for _ in range(9)]
    assert [waiting_room.has_begun(future) for future in begun] == [True] * 8 + [False]


def eventually(condition: Any) -> None:
    for _ in range(1_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")

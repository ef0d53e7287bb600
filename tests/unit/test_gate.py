from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workers import wait_until

from promptmill_worker.gate import Gate


@contextmanager
def in_thread(action: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    yield thread
    thread.join(10)
    assert not thread.is_alive()


def test_work_runs_beside_other_work() -> None:
    gate = Gate()
    with gate.beside(), gate.beside():
        assert gate.is_open


def test_alone_waits_for_what_runs_and_keeps_new_work_out() -> None:
    gate = Gate()
    granted, begun, opened = threading.Event(), threading.Event(), threading.Event()
    gate.on_open = opened.set

    def begin() -> None:
        with gate.beside():
            begun.set()

    with gate.beside():
        alone = gate.alone(granted.set)
        alone.__enter__()
        assert not granted.is_set()
        assert not gate.is_open
    assert granted.is_set()
    with in_thread(begin):
        assert not begun.wait(0.1)
        assert not opened.is_set()
        alone.__exit__(None, None, None)
    assert begun.is_set()
    assert opened.is_set()
    assert gate.is_open


def test_several_run_alone_one_after_the_other_in_their_order() -> None:
    gate = Gate()
    order: list[str] = []
    with gate.alone(lambda: order.append("first")):
        with gate.alone(lambda: order.append("gave up")):
            pass
        second = gate.alone(lambda: order.append("second"))
        second.__enter__()
        assert order == ["first"]
    assert order == ["first", "second"]
    second.__exit__(None, None, None)
    assert gate.is_open


def test_many_threads_never_run_beside_one_that_is_alone() -> None:
    gate = Gate()
    running: set[int] = set()
    broken: list[str] = []

    def work(number: int) -> None:
        for turn in range(50):
            if (number + turn) % 5:
                with gate.beside():
                    running.add(number)
                    if -1 in running:
                        broken.append("beside")
                    running.discard(number)
            else:
                granted = threading.Event()
                with gate.alone(granted.set):
                    assert granted.wait(10)
                    if running:
                        broken.append("alone")
                    running.add(-1)
                    running.discard(-1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), "all are done", 30)
    assert not broken

"""The pointer that the ledger's scripts publish is a Celery message like any that Celery publishes itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.worker.request import Request
from kombu import Connection, Consumer, Message, Queue
from kombu.transport.redis import Channel
from test_ledger import Bench

from promptmill.app import create_app
from promptmill.names import PRIORITY_STEPS, RUN_TASK, Priority
from promptmill.settings import Settings
from promptmill_worker.pointer_acks import PointerQoS

QUEUE = "promptmill.m"


@pytest.fixture
def bench(any_broker_url: str) -> Iterator[Bench]:
    bench = Bench(any_broker_url, queue=QUEUE)
    yield bench
    bench.redis.close()


@pytest.fixture
def app(any_broker_url: str) -> Iterator[Celery]:
    app = create_app(Settings(broker_url=any_broker_url))
    yield app
    app.close()


@pytest.fixture
def connection(app: Celery) -> Iterator[Connection]:
    with app.connection() as connection:
        yield connection


def consumed(connection: Connection, count: int) -> list[Message]:
    """``count`` messages of the queue, through kombu's own consumer, not acknowledged yet."""
    messages: list[Message] = []
    with Consumer(connection, [Queue(f"{QUEUE}:again"), Queue(QUEUE)], on_message=messages.append, accept=["json"]):
        while len(messages) < count:
            connection.drain_events(timeout=10)
    return messages


def celerys_own(app: Celery, bench: Bench) -> dict[str, Any]:
    """What Celery puts into the queue for the same task."""
    arguments = ["r", f"{QUEUE}|6", "1", "3"]
    app.send_task(RUN_TASK, arguments, task_id="r", queue=QUEUE, priority=6)
    [message] = bench.messages()
    bench.redis.delete(*bench.lists())
    return message


def test_the_pointer_is_built_like_celerys_own_message(app: Celery, bench: Bench) -> None:
    theirs = celerys_own(app, bench)
    bench.enter("r", 3)
    [ours] = bench.messages()
    assert ours.keys() == theirs.keys()
    assert ours["properties"].keys() == theirs["properties"].keys()
    assert ours["properties"]["delivery_info"].keys() == theirs["properties"]["delivery_info"].keys()
    same = ("correlation_id", "delivery_mode", "priority")
    assert {name: ours["properties"][name] for name in same} == {name: theirs["properties"][name] for name in same}
    assert (ours["content-type"], ours["content-encoding"]) == (theirs["content-type"], theirs["content-encoding"])


def test_the_pointers_headers_are_celerys_and_what_is_left_out_is_celerys_default(app: Celery, bench: Bench) -> None:
    arguments = ["r", f"{QUEUE}|6", "1", "3"]
    theirs = app.amqp.as_task_v2("r", RUN_TASK, arguments, ignore_result=True, argsrepr="3 prompts", kwargsrepr="")
    bench.enter("r", 3)
    [ours] = bench.messages()
    assert ours["headers"].keys() <= theirs.headers.keys()
    for name in ours["headers"].keys() - {"origin"}:
        assert ours["headers"][name] == theirs.headers[name], name
    for name in theirs.headers.keys() - ours["headers"].keys():
        assert (getattr(Context, name) or None) == (theirs.headers[name] or None), name
    _, keywords, embedded = json.loads(ours["body"])
    assert [keywords, embedded] == list(theirs.body[1:])


def test_a_celery_worker_reads_the_pointer(app: Celery, bench: Bench, connection: Connection) -> None:
    @app.task(name=RUN_TASK)
    def run(*arguments: str) -> None: ...

    bench.enter("r", 3)
    [message] = consumed(connection, 1)
    request = Request(message, app=app, task=run)
    [(record_id, lane, score, count), keywords, _] = message.payload
    assert (request.id, request.name, request.root_id) == ("r", RUN_TASK, "r")
    assert (request.eta, request.expires, request.time_limits) == (None, None, [None, None])
    assert request.task.ignore_result or request.ignore_result
    assert (request.args, request.kwargs) == ([record_id, lane, score, count], keywords)
    assert (record_id, lane, count, keywords) == ("r", f"{QUEUE}|6", "3", {})
    assert score == f"{bench.redis.zscore(bench.names.lane(lane), 'r'):.0f}"


def test_kombu_acknowledges_the_pointer(bench: Bench, connection: Connection) -> None:
    bench.enter("r", 3)
    [message] = consumed(connection, 1)
    assert bench.redis.hkeys("unacked") == [message.delivery_tag.encode()]
    message.ack()
    assert bench.redis.exists("unacked", "unacked_index") == 0


def test_kombu_puts_a_pointer_back_where_it_was(bench: Bench, connection: Connection) -> None:
    bench.enter("r", 3, Priority.LOW)
    before = bench.pointers()
    [message] = consumed(connection, 1)
    message.requeue()
    assert bench.pointers() == before
    assert bench.redis.llen(bench.lists()[1 + PRIORITY_STEPS.index(Priority.LOW)]) == 1


@pytest.mark.parametrize("priority", list(Priority))
def test_the_pointer_lies_in_the_list_in_which_kombu_looks(
    bench: Bench, connection: Connection, priority: Priority
) -> None:
    bench.enter("r", 1, priority)
    name = connection.default_channel._q_for_pri(QUEUE, int(priority))
    assert bench.redis.llen(name) == 1
    assert name == bench.lists()[1 + PRIORITY_STEPS.index(priority)]
    [message] = consumed(connection, 1)
    assert message.properties["priority"] == priority


def test_no_two_pointers_share_a_delivery_tag(bench: Bench, connection: Connection) -> None:
    for number in range(6):
        bench.enter(f"r{number}", 4)
    claims = [bench.claimed(f"r{number}", f"c{place}", room=1) for number in range(6) for place in range(3)]
    bench.ledger.put_back(claims[0].record_id, claims[0].token)
    for claim in claims[1:]:
        bench.expire_lease(claim)
    assert len(bench.sweep()) == 6
    count = len(bench.messages())
    tags = {message.delivery_tag for message in consumed(connection, count)}
    assert len(tags) == count == 6 + 18 + 1 + 6
    assert bench.redis.hlen("unacked") == count


def test_a_plain_call_queued_again_is_read_as_it_was_sent(app: Celery, bench: Bench, connection: Connection) -> None:
    app.send_task("promptmill.generate", ['say "hé"'], {"max_tokens": 5}, task_id="call", queue=QUEUE)
    [stored] = bench.messages()
    bench.redis.delete(*bench.lists())
    tag = stored["properties"]["delivery_tag"]
    head, tail = json.dumps(stored).split(tag)
    bench.enter("call", 1, Priority.FRONT, reply="", message_halves=(head, tail))
    bench.sweep()
    assert bench.sweep() == ["pointer call"]
    [message] = consumed(connection, 1)
    assert message.delivery_tag != tag
    assert message.headers["id"] == "call"
    assert message.payload[:2] == [['say "hé"'], {"max_tokens": 5}]


def taken_over(connection: Connection) -> Channel:
    channel = connection.default_channel
    PointerQoS.take_over(channel)
    return channel


def taken(channel: Channel, count: int) -> list[Message]:
    messages: list[Message] = []
    with Consumer(channel, [Queue(QUEUE)], on_message=messages.append, accept=["json"]):
        while len(messages) < count:
            channel.connection.client.drain_events(timeout=10)
    return messages


def test_a_worker_leaves_a_copy_of_plain_calls_alone(app: Celery, bench: Bench, connection: Connection) -> None:
    channel = taken_over(connection)
    bench.enter("r")
    app.send_task("promptmill.generate", ["a"], queue=QUEUE, priority=6)
    pointer, call = sorted(taken(channel, 2), key=lambda message: message.headers["task"], reverse=True)
    assert bench.redis.hkeys("unacked") == [call.delivery_tag.encode()]
    call.ack()
    pointer.ack()
    assert not bench.redis.exists("unacked", "unacked_index")


@pytest.mark.parametrize("at_shutdown", [False, True])
def test_a_pointer_that_is_given_back_is_in_the_queue_again(
    bench: Bench, connection: Connection, at_shutdown: bool
) -> None:
    channel = taken_over(connection)
    bench.enter("r")
    [before] = bench.messages()
    [pointer] = taken(channel, 1)
    assert not bench.messages()
    if at_shutdown:
        channel.close()
    else:
        pointer.reject(requeue=True)
    [after] = bench.messages()
    assert after["body"] == before["body"]
    assert after["properties"]["delivery_tag"] == before["properties"]["delivery_tag"]

"""What counts as the broker being away, and that it is said once."""

from __future__ import annotations

import logging
import time

import pytest
import redis

from promptmill.outage import Outage


@pytest.fixture
def outage(caplog: pytest.LogCaptureFixture) -> Outage:
    caplog.set_level(logging.INFO, "promptmill.outage")
    return Outage("redis://host")


def levels(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [record.levelno for record in caplog.records]


def test_an_outage_and_its_end_are_said_once(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("entering", "replies", "entering"):
        outage.failed(part, redis.ConnectionError("refused"), time.monotonic())
    assert outage.lasts
    outage.passed("entering")
    assert outage.lasts
    outage.passed("replies")
    assert not outage.lasts
    assert levels(caplog) == [logging.WARNING, logging.INFO]


def test_one_dropped_connection_is_no_outage_and_one_long_silence_is(
    outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    outage.failed("entering", redis.ConnectionError("reset"), time.monotonic())
    outage.passed("entering")
    assert levels(caplog) == []
    outage.failed("entering", redis.TimeoutError("silent"), time.monotonic())
    assert levels(caplog) == [logging.WARNING]


def test_a_silence_in_which_another_part_heard_of_the_broker_is_none(
    outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    began_at = time.monotonic()
    outage.passed("replies")
    outage.failed("entering", redis.TimeoutError("silent"), began_at)
    assert levels(caplog) == []
    outage.failed("entering", redis.TimeoutError("silent"), time.monotonic())
    assert levels(caplog) == [logging.WARNING]

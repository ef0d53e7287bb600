"""What the fleet was like in the last hour, a point each twenty seconds; and how fast prompts come and end.

Whoever lives adds the points: each worker and each monitor tries to, and one of them does.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from promptmill.fleet import Fleet, forget_lost_workers, read_fleet
from promptmill.names import Names, queue_name
from promptmill.transport import Transport

__all__ = ["EVERY_S", "HistoryPoint", "ModelPoint", "add_point", "read_history"]

#: From one point to the next, in seconds.
EVERY_S = 20.0

#: How many points are kept: an hour's.
POINTS = 180

#: Rates are told over so many points: a minute's.
RATE_POINTS = 3

#: The history of a fleet that nobody lives in any more is kept for this long, in seconds.
KEPT_S = 7200


class ModelPoint(BaseModel):
    """One model at one time."""

    model_config = ConfigDict(frozen=True)

    #: Prompts that waited, or that a worker had.
    unfinished: int
    in_flight: int
    #: How long the oldest that waited had waited, in seconds.
    oldest_s: float
    workers: int
    #: Generated tokens a second.
    tokens_per_s: float
    #: Prompts that had ever come, and that had ever ended.
    entered: int
    ended: int


class HistoryPoint(BaseModel):
    """The fleet at one time."""

    model_config = ConfigDict(frozen=True)

    #: By the broker's clock, in seconds since 1970.
    at: float
    models: dict[str, ModelPoint]


async def add_point(transport: Transport, names: Names) -> bool:
    """Adds a point and tells the rates, unless somebody has done so in the last twenty seconds.

    Returns:
        Whether it did.

    Raises:
        redis.RedisError: the broker can't be reached.
    """
    hold_ms = int(EVERY_S * 1000) - 500  # or one that asks every twenty seconds would miss every other turn
    [is_ours] = await transport.execute([("SET", names.history_turn, "1", "NX", "PX", hold_ms)])
    if not is_ours:
        return False
    await forget_lost_workers(transport, names)
    fleet = await read_fleet(transport, names)
    totals, (seconds, microseconds) = await transport.execute([("HGETALL", names.totals), ("TIME",)])
    point = HistoryPoint(at=seconds + microseconds / 1e6, models=_models(fleet, _counts(totals)))
    earlier = await _points(transport, names, RATE_POINTS)
    rates = _rates(earlier[0], point) if earlier else {}
    await transport.execute(
        [
            ("XADD", names.history, "MAXLEN", POINTS, "*", "point", point.model_dump_json()),
            ("EXPIRE", names.history, KEPT_S),
            ("DEL", names.rates),
            *([("HSET", names.rates, *(part for rate in rates.items() for part in rate))] if rates else []),
            ("EXPIRE", names.rates, int(RATE_POINTS * EVERY_S)),
        ]
    )
    return True


async def read_history(transport: Transport, names: Names) -> list[HistoryPoint]:
    """The points of the last hour, oldest first."""
    return await _points(transport, names, POINTS)


async def _points(transport: Transport, names: Names, count: int) -> list[HistoryPoint]:
    [entries] = await transport.execute([("XREVRANGE", names.history, "+", "-", "COUNT", count)])
    return [HistoryPoint.model_validate_json(fields[b"point"]) for _, fields in reversed(entries)]


def _counts(totals: dict[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in totals.items()}


def _models(fleet: Fleet, totals: dict[str, int]) -> dict[str, ModelPoint]:
    return {
        model.name: ModelPoint(
            unfinished=model.unfinished,
            in_flight=model.in_flight,
            oldest_s=round(model.oldest_s, 1),
            workers=model.workers,
            tokens_per_s=round(model.tokens_per_s, 1),
            entered=totals.get(f"{queue_name(model.name)}|entered", 0),
            ended=totals.get(f"{queue_name(model.name)}|ended", 0),
        )
        for model in fleet.models
    }


def _rates(then: HistoryPoint, now: HistoryPoint) -> dict[str, str]:
    """By queue: prompts that came and that ended a second."""
    seconds = max(now.at - then.at, 1e-3)
    rates = {}
    for name, model in now.models.items():
        before = then.models.get(name)
        came = _grown(before.entered if before else 0, model.entered)
        ended = _grown(before.ended if before else 0, model.ended)
        rates[queue_name(name)] = f"{came / seconds:.4g} {ended / seconds:.4g}"
    return rates


def _grown(then: int, now: int) -> int:
    """By how much a count has grown, which may have begun anew."""
    return now - then if now >= then else now

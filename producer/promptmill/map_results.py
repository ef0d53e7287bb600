"""The results of a ``map``, in order or as they come."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from promptmill.errors import PromptmillError
from promptmill.map_options import Item, MapOptions
from promptmill.map_progress import MapProgress
from promptmill.map_window import Arrival, MapWindow
from promptmill.protocol import GenerationResult, answer_from_wire
from promptmill.session import Session
from promptmill.source import Source

__all__ = ["run_map"]


async def run_map(
    session: Session, source: Source[Any, Item], options: MapOptions
) -> AsyncGenerator[GenerationResult, None]:
    """The results of ``source``; ending the iteration early cancels what is left."""
    window = MapWindow(session, source, options)
    await window.begin()
    waiting: dict[int, Arrival] = {}
    due = 0
    progress = MapProgress(total=source.total)
    try:
        await window.fill(held=0)
        while window.goes_on:
            news = await window.arrivals()
            ready = deque(news)
            if options.ordered:
                waiting.update((arrival.index, arrival) for arrival in news)
                ready.clear()
                while due in waiting:
                    ready.append(waiting.pop(due))
                    due += 1
            while ready:
                # Before the caller gets a result, so that workers don't wait for the caller.
                if not window.lags:  # else the caller would wait for the source, once a result
                    await window.fill(held=len(waiting) + len(ready))
                result = _result(ready.popleft(), options.on_error == "raise")
                progress = progress.after(result)
                if options.on_progress is not None:
                    options.on_progress(progress)
                yield result
            await window.fill(held=len(waiting))
    finally:
        if window.is_cut_off or sys.is_finalizing():  # nothing can be sent any more
            window.abandon()
        else:
            await window.cancel()


def _result(arrival: Arrival, raise_errors: bool) -> GenerationResult:
    answer = answer_from_wire(arrival.wire, id=arrival.task_id, index=arrival.index)
    if isinstance(answer, PromptmillError):
        if raise_errors:
            answer.add_note(f"of the prompt at index {arrival.index} of the map, task {arrival.task_id}")
            answer.index = arrival.index
            raise answer
        return GenerationResult(id=arrival.task_id, index=arrival.index, error=answer)
    return answer

"""What workers compute, whether anybody hears of it or not."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from promptmill.ledger.scripts import script


@contextmanager
def counted_finishes(broker: Redis) -> Iterator[Counter[tuple[str, str]]]:
    """How often workers send an answer to each (record, position), whether it is the first or not."""
    sent: Counter[tuple[str, str]] = Counter()
    of_finish = re.compile(r"(\w{32}) \1/.{1,90}? [01]((?: \d+ (?:answer|error) \{.*?\}(?= \d+ (?:answer|error) |$))+)")

    def count() -> None:
        for command in monitor.listen():
            if command["command"] == "PING the end":
                return
            for record_id, answers in of_finish.findall(command["command"]):
                sent.update((record_id, position) for position in re.findall(r" (\d+) (?:answer|error) \{", answers))

    broker.script_load(script("finish").source)  # or the first would be sent twice
    with broker.monitor() as monitor:
        counting = threading.Thread(target=count)
        counting.start()
        try:
            yield sent
        finally:
            broker.execute_command("PING", "the end")
            counting.join()

"""What is sent to the broker in one round trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from promptmill.ledger.scripts import POINTER_TEMPLATE, Script, script
from promptmill.names import Names
from promptmill.transport import Command

__all__ = ["Call", "run_script"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Commands, and what their replies mean. May be sent again without harm."""

    commands: Sequence[Command]
    read: Callable[[list[Any]], T]
    #: The script that the commands run, if they run one.
    script: Script | None = None
    #: Whether they block in the broker, for news.
    waits: bool = False


def run_script(names: Names, name: str, runs: Sequence[Sequence[Any]], read: Callable[[list[Any]], T]) -> Call[T]:
    """Runs one script once for each of ``runs``, which are its arguments; ``read`` makes sense of the replies.

    EVALSHA goes into the pipeline as it is: redis-py's Script objects would add a round trip.
    """
    code = script(name)
    commands = [("EVALSHA", code.sha1, 0, names.prefix, POINTER_TEMPLATE, *arguments) for arguments in runs]
    return Call(commands, read, code)

"""Log lines for machines: one JSON object a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

__all__ = ["JsonFormatter", "Log", "LogFormat"]

LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class Log:
    """What is logged, and how."""

    #: "debug", "info", "warning" or "error".
    level: str = "info"
    format: LogFormat = "text"

    def configure(self, name: str) -> None:
        """Has this process log so, to standard error; in lines for people under ``name``."""
        logging.basicConfig(format=f"[%(asctime)s: %(levelname)s/{name}] %(message)s", level=self.level.upper())
        if self.format == "json":
            logging.getLogger().handlers[0].setFormatter(JsonFormatter())


class JsonFormatter(logging.Formatter):
    """Writes ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, and an exception's traceback.

    Args:
        fields: Further fields by name, each asked for on the thread that logs; None leaves it out of the line.
    """

    def __init__(self, fields: Mapping[str, Callable[[], str | None]] | None = None) -> None:
        super().__init__()
        self._fields = fields or {}

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, ask in self._fields.items() if (value := ask()) is not None},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)

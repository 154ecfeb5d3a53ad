"""Logs of a command: lines for a person on a terminal, JSON for everything else."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

__all__ = ["set_up_logs"]


def set_up_logs(level: str, stream: TextIO = sys.stderr, *, as_json: bool | None = None) -> None:
    """Send all logging of the process to ``stream``.

    ``as_json`` None decides by whether the stream is a terminal.  Fields given with ``extra=`` become
    fields of the JSON, or ``key=value`` at the end of the line.
    """
    if as_json is None:
        as_json = not stream.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
    ]
    last: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last += [structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())

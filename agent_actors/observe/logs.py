"""Logs: structlog in every process, pretty on a terminal, one JSON object a line elsewhere.

Our own events go straight to the stream; those of libraries come through `logging` and end in
the same processors, so that nothing gets out but through `redact`.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec
import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from agent_actors.errors import ConfigError
from agent_actors.observe.redaction import redact

LEVEL_VARIABLE = "AGENT_ACTORS_LOG_LEVEL"
FORMAT_VARIABLE = "AGENT_ACTORS_LOG_FORMAT"
LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("auto", "pretty", "json")


def configure_logs(process: str, *, level: str | None = None, stream: TextIO | None = None) -> None:
    """Log from now on as `process`, at `level` (else $AGENT_ACTORS_LOG_LEVEL, else info).

    Goes to `stream`, else to whatever `sys.stderr` is when an event happens. Calling it again
    moves all loggers, but one that has logged before keeps its level. Call it once Ray is
    imported: Ray's console handler gives way then. $AGENT_ACTORS_LOG_FORMAT (auto, pretty,
    json) overrides the look, for workers whose lines end on somebody's terminal. Raises
    ConfigError.
    """
    name = _one_of(LEVELS, level or os.environ.get(LEVEL_VARIABLE) or "info", LEVEL_VARIABLE)
    _lines.stream = stream
    ending = [structlog.processors.format_exc_info, redact, _heading(process), _renderer(stream)]
    _configure_structlog([structlog.contextvars.merge_contextvars, *ending], name)
    _configure_logging(ending, name)


def keep_quiet() -> None:
    """Let only warnings out, on stderr, as long as the program has not configured structlog.

    Its defaults would print everything, prompts included, on standard output.
    """
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("warning"),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


class _Lines:
    """Where lines leave the process; a full disk or a closed pipe must not fail a task."""

    def __init__(self) -> None:
        self.stream: TextIO | None = None

    def write(self, line: str) -> None:
        stream = self.stream or sys.stderr
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            stream.write(line + "\n")
            stream.flush()

    debug = info = warning = error = critical = write


class _LibraryHandler(logging.Handler):
    """Brings what libraries log to the same lines; there is one, at the root."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a library's broken record must not break the library
            log.warning("log.unreadable", logger=record.name, file=record.filename)
        else:
            _lines.write(line)


# Loggers that were used keep these two objects, so they are changed, never replaced.
_lines = _Lines()
_processors: list[Processor] = []

log = structlog.get_logger()


def _configure_structlog(processors: list[Processor], level: str) -> None:
    _processors[:] = processors
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _lines,
        cache_logger_on_first_use=True,
    )


def _configure_logging(ending: list[Processor], level: str) -> None:
    root = logging.getLogger()
    handler = next((h for h in root.handlers if isinstance(h, _LibraryHandler)), None)
    if handler is None:
        handler = _LibraryHandler()
        root.addHandler(handler)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_logger_name,
            ],
            processors=[ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root.setLevel(level.upper())
    _take_over_ray()


def _take_over_ray() -> None:
    """Let Ray's log come to the root, as Ray's own components do; its files are not touched."""
    ray_log = logging.getLogger("ray")
    for handler in ray_log.handlers[:]:
        if type(handler).__module__ == "ray._private.log":
            ray_log.removeHandler(handler)
            ray_log.propagate = True


def _heading(process: str) -> Processor:
    """Put first what every line has."""

    def head(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        timestamp = f"{datetime.now(UTC).isoformat(timespec='microseconds')[:-6]}Z"
        what = event.pop("event", "")
        return {
            "timestamp": timestamp,
            "level": method,
            "event": what,
            "process": process,
            **event,
        }

    return head


def _renderer(stream: TextIO | None) -> Processor:
    look = _one_of(FORMATS, os.environ.get(FORMAT_VARIABLE) or "auto", FORMAT_VARIABLE)
    if look == "pretty" or (look == "auto" and (stream or sys.stderr).isatty()):
        # A traceback with the values of variables would show more than it explains.
        return ConsoleRenderer(
            colors=not os.environ.get("NO_COLOR"),
            exception_formatter=plain_traceback,
            sort_keys=False,
        )
    return _render_json


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    try:
        return _encode(event).decode()
    except UnicodeEncodeError:  # a lone surrogate, from the name of a file say
        return json.dumps(event, default=repr)


_encode: Callable[[object], bytes] = msgspec.json.Encoder(enc_hook=repr).encode


def _one_of(choices: tuple[str, ...], value: str, name: str) -> str:
    if value.lower() in choices:
        return value.lower()
    raise ConfigError(f"{name}: is {value!r}, must be one of {', '.join(choices)}")

"""Structured log lines: one JSON object a line on stderr."""

import json
import logging
import sys
import time
import traceback


def log(event: str, **facts: object) -> None:
    """Write one event with its facts."""
    line = {"time": round(time.time(), 3), "event": event, **facts}
    sys.stderr.write(json.dumps(line, default=str) + "\n")
    sys.stderr.flush()


def log_defect(event: str, error: BaseException | None, **facts: object) -> None:
    """Write an exception that nobody expected, with where it came from."""
    trace = "".join(traceback.format_exception(error)) if error is not None else ""
    log(event, error=repr(error), trace=trace, **facts)


class _AsLines(logging.Handler):
    """Writes what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one of their records, with the exception that it has."""
        facts = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info and (error := record.exc_info[1]) is not None:
            log_defect("library", error, **facts)
        else:
            log("library", **facts)


def take_library_logs() -> None:
    """Have what libraries warn of come as lines like all others."""
    logging.basicConfig(handlers=[_AsLines()], level=logging.WARNING, force=True)

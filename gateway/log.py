"""Structured log lines: one JSON object a line on stderr."""

import json
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

"""Structured log lines: one JSON object a line on stderr."""

import json
import sys
import time


def log(event: str, **facts: object) -> None:
    """Write one event with its facts."""
    line = {"time": round(time.time(), 3), "event": event, **facts}
    sys.stderr.write(json.dumps(line, default=str) + "\n")
    sys.stderr.flush()

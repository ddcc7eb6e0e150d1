"""Checks of single option values: type, then limits, with the value and the limit in the message.

Knows names, values and limits. Does not know which options there are.
"""

import math

from engine.errors import InvalidRequest

MAX_ID = 2**31 - 1


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is no integer between `low` and `high`.

    Raises:
        InvalidRequest: so do all functions here.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}")


def check_float(name: str, value: object, low: float, high: float, *, above_low: bool = False) -> None:
    """Refuse what is no finite number between `low` and `high`, or above `low`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise InvalidRequest(f"{name} must be a finite number, got {value!r}")
    if value > high or value < low or (above_low and value == low):
        bound = f"above {low:g} and at most {high:g}" if above_low else f"between {low:g} and {high:g}"
        raise InvalidRequest(f"{name} must be {bound}, got {value:g}")


def check_bool(name: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, got {value!r}")


def check_strings(name: str, one: str, value: object, max_strings: int, max_chars: int) -> None:
    """Refuse what is no tuple of a few short, non-empty strings; `one` names one of them."""
    if not isinstance(value, tuple) or not all(isinstance(s, str) for s in value):
        raise InvalidRequest(f"{name} must be a list of strings, got {value!r}")
    if len(value) > max_strings:
        raise InvalidRequest(f"{name} takes at most {max_strings} strings, got {len(value)}")
    for s in value:
        if not 1 <= len(s) <= max_chars:
            raise InvalidRequest(f"{one} must have 1 to {max_chars} characters, got {len(s)}")


def check_ids(name: str, value: object, max_ids: int) -> None:
    """Refuse what is no tuple of token ids; whether the vocabulary has them is checked where it is known."""
    if not isinstance(value, tuple):
        raise InvalidRequest(f"{name} must be a list of integers, got {value!r}")
    if len(value) > max_ids:
        raise InvalidRequest(f"{name} takes at most {max_ids} entries, got {len(value)}")
    for token_id in value:
        check_int(name, token_id, 0, MAX_ID)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False

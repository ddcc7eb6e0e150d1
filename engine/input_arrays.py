"""Values read from a request's named arrays.

Knows arrays, types and shapes. Does not know which names there are or what the values mean. Whatever is of another type
or size is an `InvalidRequest`.
"""

from collections.abc import Sized
from typing import Any

import numpy as np

from engine.errors import InvalidRequest
from engine.request_options import json_object

MAX_ELEMENTS = 1024 * 1024  # of one tensor
MAX_OPTION_BYTES = 1024 * 1024  # of one text: 60 MB of JSON took 51 s to read, 19 s of them with the interpreter's lock


def read_text(name: str, raw: object) -> str:
    """Return one element of a BYTES tensor as text.

    Raises:
        InvalidRequest: it is no valid UTF-8.
    """
    if isinstance(raw, str):
        return raw
    try:
        return bytes(raw).decode("utf-8")  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8: {error.reason} at byte {error.start}") from error


def read_one(name: str, array: np.ndarray) -> Any:
    """Return the only element of `array`.

    Raises:
        InvalidRequest: it has another number of elements.
    """
    if array.size != 1:
        raise InvalidRequest(f"{name} must hold exactly 1 element, got shape {list(array.shape)}")
    return array.reshape(-1)[0]


def _of_kind(name: str, array: np.ndarray, kinds: str, what: str) -> np.ndarray:
    if array.dtype.kind not in kinds:
        raise InvalidRequest(f"{name} must be of type {what}, got {array.dtype}")
    if array.size > MAX_ELEMENTS:
        raise InvalidRequest(f"{name} has {array.size} elements; at most {MAX_ELEMENTS} can be served")
    return array


def read_int(name: str, array: np.ndarray) -> int:
    """Return the only element, an integer."""
    return int(read_one(name, _of_kind(name, array, "iu", "INT32 or UINT64")))


def read_float(name: str, array: np.ndarray) -> float:
    """Return the only element, a float, as the shortest decimal."""
    value = read_one(name, _of_kind(name, array, "f", "FP32"))
    return float(str(value))  # the shortest decimal: 0.7 and not 0.699999988


def read_bool(name: str, array: np.ndarray) -> bool:
    """Return the only element, a truth value."""
    return bool(read_one(name, _of_kind(name, array, "b", "BOOL")))


def read_texts(name: str, array: np.ndarray) -> tuple[str, ...]:
    """Return all elements, texts."""
    return tuple(read_text(name, raw) for raw in _of_kind(name, array, "OSU", "BYTES").reshape(-1))


def read_ids(name: str, array: np.ndarray) -> tuple[int, ...]:
    """Return all elements, integers."""
    return tuple(_of_kind(name, array, "iu", "INT32").reshape(-1).tolist())


def read_string(name: str, array: np.ndarray, max_bytes: int = MAX_OPTION_BYTES) -> str:
    """Return the text of a BYTES tensor of one element.

    Raises:
        InvalidRequest: another type, another number of elements, more than `max_bytes`, or no valid UTF-8.
    """
    raw = read_one(name, _of_kind(name, array, "OSU", "BYTES"))
    check_size(name, raw, max_bytes)
    return read_text(name, raw)


def check_size(name: str, raw: Sized, max_bytes: int) -> None:
    """Refuse what would take long to read.

    Raises:
        InvalidRequest: there are more than `max_bytes`.
    """
    if len(raw) > max_bytes:
        raise InvalidRequest(f"{name} has {len(raw)} bytes; at most {max_bytes} can be served")


def read_object(name: str, array: np.ndarray) -> dict[str, Any]:
    """Return the JSON object that the only element, a text, holds."""
    return json_object(name, read_string(name, array))

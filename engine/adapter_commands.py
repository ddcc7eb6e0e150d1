"""What can be asked about adapters from outside, as one JSON text.

Knows the text's layout. Does not know which adapters there are.
"""

from dataclasses import dataclass

from engine.errors import InvalidRequest
from engine.request_options import json_object

LAYOUT = '{}, {"load": NAME} or {"unload": NAME}'


@dataclass(slots=True, frozen=True)
class AdapterRequest:
    """Load or unload the adapter of that name; with an empty one, only tell which there are."""

    name: str = ""
    is_unload: bool = False


def read_adapter_command(text: str) -> AdapterRequest:
    """Read the text.

    Raises:
        InvalidRequest: it is laid out otherwise.
    """
    value = json_object("adapters", text)
    if not value:
        return AdapterRequest()
    (action, name), *more = value.items()
    if more or action not in ("load", "unload") or not isinstance(name, str) or not name:
        raise InvalidRequest(f"adapters must be {LAYOUT}, got {text!r:.300}")
    return AdapterRequest(name, is_unload=action == "unload")

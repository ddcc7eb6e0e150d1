"""What the text of a request's answer must follow: a schema, a pattern, a grammar or one of some choices.

Knows the kinds and their spelling in JSON. Does not know tokens or whether a grammar makes sense: compiling it tells.
"""

import json
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.option_checks import check_strings

MAX_GUIDE_CHARS = 64 * 1024
MAX_CHOICES = 256
KINDS = ("json_schema", "json_object", "regex", "ebnf", "choice")


@dataclass(slots=True, frozen=True)
class Guided:
    """One kind of guide and its source text: a JSON schema or list of choices as JSON, else as the user wrote it."""

    kind: str
    source: str

    @classmethod
    def from_json(cls, value: object) -> "Guided":
        """Read `{kind: source}`; a schema may be an object or its text, `json_object` is true, choices are a list.

        Raises:
            InvalidRequest: an unknown kind, more than one, or a source of the wrong type or size.
        """
        if isinstance(value, Guided):
            return value
        if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in KINDS:
            raise InvalidRequest(f"guided must be an object with exactly one of {', '.join(KINDS)}")
        kind, source = next(iter(value.items()))
        text = _source_text(kind, source)
        if not 1 <= len(text) <= MAX_GUIDE_CHARS:
            raise InvalidRequest(f"guided.{kind} must have 1 to {MAX_GUIDE_CHARS} characters, got {len(text)}")
        return cls(kind, text)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes back."""
        values = {"json_object": True, "choice": json.loads(self.source) if self.kind == "choice" else None}
        return {self.kind: values.get(self.kind, self.source)}


def _source_text(kind: str, source: object) -> str:
    if kind == "json_object":
        if source is not True:
            raise InvalidRequest(f"guided.json_object must be true, got {source!r}")
        return "{}"
    if kind == "choice":
        choices = tuple(source) if isinstance(source, list | tuple) else source
        check_strings("guided.choice", "a choice", choices, MAX_CHOICES, MAX_GUIDE_CHARS)
        if not choices:
            raise InvalidRequest("guided.choice is empty: at least 1 string is needed")
        return json.dumps(choices, ensure_ascii=False)
    if kind == "json_schema" and not isinstance(source, str):
        if not isinstance(source, dict | bool):
            raise InvalidRequest(f"guided.json_schema must be a schema or its text, got {type(source).__name__}")
        return json.dumps(source, ensure_ascii=False)
    if not isinstance(source, str):
        raise InvalidRequest(f"guided.{kind} must be a string, got {type(source).__name__}")
    return source

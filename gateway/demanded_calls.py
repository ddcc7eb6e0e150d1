"""The grammar of an answer that must be a call of a tool.

Knows how llguidance's Lark grammars embed JSON schemas. Does not know what a model would say by itself.
"""

import json
from collections.abc import Iterable
from typing import Any

from gateway.openai_parts import Tool
from gateway.tool_calls import Form

CALL_FORM: Form = "llama3_json"  # what the grammar writes: the call alone, as an object
COMPOSED = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"}  # names that stand elsewhere
AS_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # by `json.dumps`


def call_grammar(tools: Iterable[Tool]) -> str:
    """Return the grammar of one call of one of these tools, whose arguments follow its schema and are no others.

    Each schema stands by itself, so that its `$ref`s mean its own `$defs`.
    """
    rules: list[str] = []
    names: list[str] = []
    for number, tool in enumerate(tools):
        schema = _closed(tool.function.parameters or {}) | {"type": "object", "x-guidance": AS_WRITTEN}
        opening = f'{{"name": {json.dumps(tool.function.name)}, "arguments": '
        names.append(f"call_{number}")
        rules += [
            f'call_{number}: {json.dumps(opening)} arguments_{number} "}}"',
            f"arguments_{number}: %json {json.dumps(schema)}",
        ]
    return "\n".join([f"start: {' | '.join(names)}", *rules])


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without room for arguments that it does not name, where it names some and does not say."""
    is_list = "properties" in schema and not COMPOSED & schema.keys()
    return {"additionalProperties": False} | schema if is_list else schema

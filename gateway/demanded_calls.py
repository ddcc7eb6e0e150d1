"""The grammar of an answer that must be a call of a tool.

Knows how llguidance's Lark grammars embed JSON schemas. Does not know what a model would say by itself.
"""

import json
from collections.abc import Iterable

from gateway.openai_parts import Tool
from gateway.tool_calls import Form

CALL_FORM: Form = "llama3_json"  # what the grammar writes: the call alone, as an object
AS_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # by `json.dumps`


def call_grammar(tools: Iterable[Tool]) -> str:
    """Return the grammar of one call of one of these tools, whose arguments follow its schema.

    Each schema stands by itself, so that its `$ref`s mean its own `$defs`.
    """
    rules: list[str] = []
    names: list[str] = []
    for number, tool in enumerate(tools):
        schema = (tool.function.parameters or {}) | {"type": "object", "x-guidance": AS_WRITTEN}
        opening = f'{{"name": {json.dumps(tool.function.name)}, "arguments": '
        names.append(f"call_{number}")
        rules += [
            f'call_{number}: {json.dumps(opening)} arguments_{number} "}}"',
            f"arguments_{number}: %json {json.dumps(schema)}",
        ]
    return "\n".join([f"start: {' | '.join(names)}", *rules])

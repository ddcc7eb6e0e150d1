"""From the bytes of an OpenAI request to its checked body.

Knows what is malformed and how OpenAI says so. Does not know HTTP, or what bodies mean.
"""

import json
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.kserve_messages import MODEL
from gateway.openai_bodies import Body, Unsupported, without_neutral
from gateway.openai_embeddings import EmbeddingBody
from gateway.openai_errors import ApiError
from gateway.openai_parts import AllowedTools, ForModel, NamedTool

M = TypeVar("M", bound=ForModel)
MAX_COMMAS = 2**19  # of a body: every open stream waits while what stands between them is read, 0.2 us each
MAX_FIELDS = 256
MAX_QUOTED = 100  # characters of a wrong value
MAX_EXPLAINED = 1000  # errors: pydantic takes 8 us to tell of each, and tells of all
ALTERNATIVES = frozenset({"str", NamedTool.__name__, AllowedTools.__name__})
NO_OBJECT = frozenset({"model_type", "dict_type"})  # pydantic's words for them are of Python


def parse_body(kind: type[Body], raw: bytes) -> Body:
    """Return the checked body of a request for a completion.

    Raises:
        ApiError: it is malformed, or asks for something we do not do.
    """
    try:
        body = _validated(kind, without_neutral(_fields(raw)))
    except Unsupported as error:
        raise ApiError(400, str(error), error.name, "unsupported_value") from error
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is allowed only with stream", "stream_options")
    return body


def parse_embedding_body(raw: bytes) -> EmbeddingBody:
    """Return the checked body of a request for embeddings.

    Raises:
        ApiError: it is malformed, or asks for something we do not do.
    """
    return _validated(EmbeddingBody, _fields(raw))


def _fields(raw: bytes) -> dict[str, Any]:
    if (count := raw.count(b",")) > MAX_COMMAS:
        raise ApiError(413, f"the body has {count} commas; at most {MAX_COMMAS} can be served")
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad JSON, or a number of thousands of digits
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object")
    if len(fields) > MAX_FIELDS:
        raise ApiError(400, f"the body has {len(fields)} fields; none is known beyond the first {MAX_FIELDS}")
    return fields


def _validated(kind: type[M], fields: dict[str, Any]) -> M:
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from error
    if body.model != MODEL:
        raise unknown_model(body.model)
    return body


def unknown_model(name: str) -> ApiError:
    """Return what is said of a model that is not here."""
    return ApiError(404, f"the model {name!r} does not exist; there is {MODEL!r}", "model", "model_not_found")


def _explain(error: ValidationError) -> ApiError:
    if error.error_count() > MAX_EXPLAINED:
        return ApiError(400, f"the body has {error.error_count()} fields or values that are wrong")
    found = error.errors(include_url=False, include_context=False)
    first = max((item for item in found if item["loc"][:1] == found[0]["loc"][:1]), key=_nearness)
    place = ".".join(str(part) for part in first["loc"] if not _is_alternative(part))
    param = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"the field {place!r} is unknown or not supported", param, "unknown_parameter")
    if first["type"] in NO_OBJECT:
        return ApiError(400, f"{place}: must be an object, not {json.dumps(first['input'])[:MAX_QUOTED]}", param)
    message = first["msg"].removeprefix("Value error, ")
    given = repr(first["input"])[:MAX_QUOTED]
    if isinstance(first["input"], str | int | float) and first["type"] != "value_error" and ", not " not in message:
        message = f"{message}, not {given}"
    return ApiError(400, f"{place}: {message}" if place else message, param)


def _nearness(item: ErrorDetails) -> tuple[int, bool]:
    """Order what is wrong with a value as each of several types: the deepest, and not that it is another type."""
    return len(item["loc"]), not item["type"].endswith("_type")


def _is_alternative(part: int | str) -> bool:
    """Whether this part of a place names a type of a union and not a field."""
    return isinstance(part, str) and (part in ALTERNATIVES or "[" in part)

"""Every field of the configuration as text, with limits and default: made from the models, so never behind them.

Knows pydantic's models and dataclasses. Does not know what any field does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from gateway.wire.limits import MEANING

SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def describe(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield a line for each field of a model and of the models in it."""
    for name, field in model.model_fields.items():
        path = prefix + name
        sections = [part for part in _parts(field.annotation) if _is_section(part)]
        if not sections:
            yield f"{path}: {describe_field(field)}"
        for section in sections:
            yield f"{path}: {field.description or _first_sentence(section)}"
            inner = path + ("[]." if _is_list(field.annotation) else ".")
            is_model = issubclass(section, BaseModel)
            yield from describe(section, inner) if is_model else _describe_numbers(field.default, inner)


def describe_field(field: FieldInfo) -> str:
    """Return what a field means, what it may be and what it is where it is not given."""
    facts = []
    for part in (field, *_parts(field.annotation)):
        metadata = part.metadata if isinstance(part, FieldInfo) else []
        facts += [f"{sign} {getattr(each, name)}" for each in metadata for name, sign in SIGNS if hasattr(each, name)]
    if choices := [choice for part in _parts(field.annotation) for choice in _choices(part)]:
        facts.append(f"one of {', '.join(choices)}")
    default = "required" if field.is_required() else f"default {_shown(field.get_default(call_default_factory=True))}"
    return f"{field.description or ''} ({'; '.join([*facts, default])})".strip()


def _describe_numbers(section: Any, prefix: str) -> Iterator[str]:
    """Yield a line for each field of a dataclass that holds the defaults, and of those in it."""
    for item in dataclasses.fields(section):
        default, meaning = getattr(section, item.name), item.metadata[MEANING]
        is_section = dataclasses.is_dataclass(default)
        yield f"{prefix}{item.name}: {meaning}" + ("" if is_section else f" (default {_shown(default)})")
        if is_section:
            yield from _describe_numbers(default, f"{prefix}{item.name}.")


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield what an annotation is made of, such as `A` and None of `A | None`."""
    found = get_args(annotation)
    if not found:
        yield annotation
    for part in found:
        yield from _parts(part)


def _choices(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    return [each.value for each in part] if isinstance(part, type) and issubclass(part, Enum) else []


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and (issubclass(part, BaseModel) or dataclasses.is_dataclass(part))


def _is_list(annotation: Any) -> bool:
    return any(getattr(part, "__origin__", None) is tuple for part in (annotation, *get_args(annotation)))


def _shown(value: Any) -> str:
    return json.dumps(TypeAdapter(Any).dump_python(value, mode="json"))


def _first_sentence(section: type[Any]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]

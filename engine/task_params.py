"""What a request wants computed, besides how it is sampled and scheduled.

Knows names, types, defaults and limits. Does not know which adapters there are, tensors, or where the values came from.

Invariant: a `TaskParams` that exists is valid; a value outside its limits is refused with the limit and itself.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from engine.errors import InvalidRequest
from engine.option_checks import check_bool
from engine.pooling import POOLINGS

MAX_ADAPTER_CHARS = 256


@dataclass(slots=True, frozen=True)
class TaskParams:
    """The task of one request.

    Attributes:
        adapter: name of the low-rank adapter to compute with; empty for the model as it is.
        embed: how to pool the prompt's hidden states into one vector, `mean` or `last`; empty to generate tokens.
        normalize_embedding: scale that vector to length 1.
    """

    adapter: str = ""
    embed: str = ""
    normalize_embedding: bool = True

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequest: a value has the wrong type or lies outside its limits.
        """
        if not isinstance(self.adapter, str) or len(self.adapter) > MAX_ADAPTER_CHARS:
            raise InvalidRequest(
                f"adapter must be a string of at most {MAX_ADAPTER_CHARS} characters, got {self.adapter!r:.300}"
            )
        if self.embed not in ("", *POOLINGS):
            raise InvalidRequest(f"embed must be one of {', '.join(POOLINGS)}, got {self.embed!r:.300}")
        check_bool("normalize_embedding", self.normalize_embedding)
        if not self.embed and not self.normalize_embedding:
            raise InvalidRequest("normalize_embedding is for requests with embed")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> "TaskParams":
        """Build from a decoded JSON object.

        Raises:
            InvalidRequest: an unknown name, a wrong type, or a value outside its limits.
        """
        unknown = sorted(options.keys() - TASK_OPTIONS)
        if unknown:
            raise InvalidRequest(f"unknown task parameter {unknown[0]!r}; known are: {', '.join(sorted(TASK_OPTIONS))}")
        return cls(**options)

    def to_mapping(self) -> dict[str, Any]:
        """Return what `from_mapping` takes back, defaults left out."""
        return {name: value for name, value in asdict(self).items() if value != getattr(DEFAULT_TASK, name)}


TASK_OPTIONS = frozenset(field.name for field in fields(TaskParams))
DEFAULT_TASK = TaskParams()

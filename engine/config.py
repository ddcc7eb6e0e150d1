"""How the engine is set up: sizes, limits and the model's folder.

Knows names, defaults, limits and the environment variables that override them. Does not know tensors or the model.

Invariant: an `EngineConfig` that exists is consistent; a bad value is refused with its name, its limit and itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.errors import ModelError

ENV_PREFIX = "SCALELLM_"
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "demo_model"
TRUE_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(slots=True, frozen=True)
class EngineConfig:
    """Settings of one engine.

    Attributes:
        model: folder of a Hugging Face checkpoint.
        block_size: tokens in one KV-cache block.
        num_blocks: KV-cache blocks; 0 derives the number from `kv_cache_gib`.
        kv_cache_gib: memory for the KV cache in GiB, used where `num_blocks` is 0.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: token budget of one step.
        max_waiting: most requests that may wait; the next one is refused.
        max_model_len: most tokens of prompt and output together; 0 means the model's own limit.
        enable_prefix_caching: share the KV blocks of equal prefixes.
        num_threads: compute threads; 0 means one for each core.
        watchdog_seconds: a core that says nothing for this long is killed and started again.
    """

    model: Path = DEFAULT_MODEL
    block_size: int = 16
    num_blocks: int = 0
    kv_cache_gib: float = 1.0
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 512
    max_waiting: int = 1024
    max_model_len: int = 0
    enable_prefix_caching: bool = True
    num_threads: int = 0
    watchdog_seconds: float = 120.0

    def __post_init__(self) -> None:
        """Check each setting alone and against the others.

        Raises:
            ModelError: a value lies outside its limits.
        """
        lowest = {"block_size": 1, "max_num_seqs": 1, "max_num_batched_tokens": 1, "max_waiting": 1}
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens", "max_waiting"):
            _require(name, getattr(self, name), lowest.get(name, 0))
        for name in ("max_model_len", "num_threads", "kv_cache_gib", "watchdog_seconds"):
            _require(name, getattr(self, name), 0)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ModelError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), since every running sequence needs a token in each step"
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **defaults: Any) -> "EngineConfig":
        """Read `SCALELLM_<FIELD>` for every field, over `defaults`.

        Raises:
            ModelError: a variable cannot be read as its field's type, or a value is out of its limits.
        """
        source = os.environ if env is None else env
        values = dict(defaults)
        for item in fields(cls):
            text = source.get(ENV_PREFIX + item.name.upper())
            if text:
                values[item.name] = _parse(ENV_PREFIX + item.name.upper(), text, item.default)
        return cls(**values)


def _require(name: str, value: float, low: float) -> None:
    if value < low:
        raise ModelError(f"{name} must be at least {low}, got {value}")


def _parse(name: str, text: str, default: object) -> Any:
    try:
        if isinstance(default, bool):
            return TRUE_WORDS[text.lower()]
        kind: Any = type(default)
        return Path(text).expanduser().resolve() if isinstance(default, Path) else kind(text)  # the core runs elsewhere
    except (KeyError, ValueError):
        raise ModelError(f"{name} must be a {type(default).__name__}, got {text!r}") from None

"""How the engine is set up: sizes, limits and the model's folder.

Knows names, defaults, limits and the environment variables that override them. Does not know tensors or the model.

Invariant: an `EngineConfig` that exists is consistent; a bad value is refused with its name, its limit and itself.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.parallel.config import ParallelConfig
from engine.quantization.config import LoadScheme

ENV_PREFIX = "SCALELLM_"
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "demo_model"
MAX_DRAFT_TOKENS = 16
HOST_CACHE_GIB = 1.0  # KV cache on the CPU where nothing is said
DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")
OVERLAP_MODES = ("auto", "on", "off")
SPECULATION_METHODS = ("off", "ngram", "draft")
KV_CACHE_DTYPES = ("auto", "int8", "fp8")
SCHEDULER_POLICIES = ("max_utilization", "guaranteed_no_evict")
RANK_EXECUTORS = ("local", "ray", "external")
HOST_AND_PORT = re.compile(r".+:[0-9]{1,5}")
RANK_KEY = re.compile(r"[0-9a-fA-F]{64}")
TRUE_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(slots=True, frozen=True)
class EngineConfig:
    """Settings of one engine.

    Attributes:
        model: folder of a Hugging Face checkpoint.
        device: `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU where there is one, else the CPU.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is the checkpoint's on a GPU and float32 on the CPU.
        block_size: tokens in one KV-cache block.
        num_blocks: KV-cache blocks; 0 derives the number from `kv_cache_gib`.
        kv_cache_gib: memory for the KV cache in GiB, used where `num_blocks` is 0; 0 means 1 GiB on the CPU, and on a
            GPU what `gpu_memory_share` leaves beside the weights and the largest step.
        gpu_memory_share: how much of a GPU's memory may be in use, other processes' included.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: token budget of one step.
        scheduler_policy: `max_utilization` starts whatever fits now and preempts where blocks run out;
            `guaranteed_no_evict` starts a request only where its longest output fits too, and never preempts.
        ageing_seconds: a waiting request gains one priority class in this time; 0 makes classes of no effect.
        max_waiting: most requests that may wait; the next one is refused.
        max_waiting_tokens: most tokens of waiting requests; one that would go over it is refused.
        max_model_len: most tokens of prompt and output together; 0 means the model's own limit.
        enable_prefix_caching: share the KV blocks of equal prefixes.
        speculation: how draft tokens are made for requests that do not say: `off`, `ngram` (looked up in the request's
            own text) or `draft` (by `draft_model`).
        num_draft_tokens: draft tokens of a sequence in one step, where the request does not say.
        max_speculating_seqs: a step of more sequences than this has no drafts; 0 turns speculation off.
        draft_model: folder of a small checkpoint with the model's tokenizer; without one `draft` is refused.
        draft_kv_cache_gib: memory for the draft model's KV cache in GiB.
        quantization: what plain weights are rounded to as they are loaded: `int8` (inputs stay as they are),
            `int8_dynamic` (inputs are rounded too), `fp8` or `fp8:tensor|channel|block`, `int4` or `int4:GROUP`; empty
            for nothing. A checkpoint that is quantized already needs no option.
        cuda_graphs: record decode steps as CUDA graphs, on a GPU.
        overlap: `on` lays out a step while the one before it is computed; `auto` does so on a GPU, `off` never.
        kv_cache_dtype: what keys and values are kept in: `auto` (as they are computed), or, with a scale for each token
            and head, `int8` or `fp8` (e4m3).
        kernel_tuning: folder of what `scripts/bench tune` has measured; a GPU's kernels take it where it fits.
        num_threads: compute threads; 0 means one for each core.
        adapters: folder whose folders are adapters in PEFT's format, each named by its own; None serves none.
        max_adapters: most adapters in memory at once.
        adapter_gib: memory for their weights, in GiB.
        max_lora_rank: adapters of a larger rank are refused.
        tensor_parallel: ranks (processes) that split each tensor of the model; see `engine.parallel.config`.
        expert_parallel: groups of such ranks that share out the experts of a mixture.
        expert_loads: JSON file that says how often each expert of each layer is used, to balance the groups by.
        expert_replicas: experts of each layer that are held once more, those used most.
        rank_executor: who starts the other ranks: `local`, as processes beside the engine core; `ray`, as actors on the
            nodes of a Ray cluster; `external`, somebody else, such as torchrun.
        ray_address: the cluster's, as `ray.init` takes it; empty for the one that this machine is a node of.
        rank_address: `host:port` at which external ranks are awaited.
        rank_key: 32 secret bytes in hexadecimal that all ranks know; without one each group has a key of its own.
        rank_start_seconds: a group whose ranks have not come together in this time is given up, and tried again.
        rank_timeout_seconds: a step of several ranks that takes longer means that one hangs, and ends the group.
        watchdog_seconds: a core that says nothing for this long is killed and started again.
    """

    model: Path = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    block_size: int = 16
    num_blocks: int = 0
    kv_cache_gib: float = 0.0
    gpu_memory_share: float = 0.9
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 512
    scheduler_policy: str = "max_utilization"
    ageing_seconds: float = 10.0
    max_waiting: int = 1024
    max_waiting_tokens: int = 1 << 20
    max_model_len: int = 0
    enable_prefix_caching: bool = True
    speculation: str = "off"
    num_draft_tokens: int = 4
    max_speculating_seqs: int = 8
    draft_model: Path | None = None
    draft_kv_cache_gib: float = 0.25
    quantization: str = ""
    cuda_graphs: bool = True
    overlap: str = "auto"
    kv_cache_dtype: str = "auto"
    kernel_tuning: Path = Path("~/.cache/scalellm-triton/tuning")
    num_threads: int = 0
    adapters: Path | None = None
    max_adapters: int = 8
    adapter_gib: float = 1.0
    max_lora_rank: int = 64
    tensor_parallel: int = 1
    expert_parallel: int = 1
    expert_loads: Path | None = None
    expert_replicas: int = 0
    rank_executor: str = "local"
    ray_address: str = ""
    rank_address: str = ""
    rank_key: str = ""
    rank_start_seconds: float = 120.0
    rank_timeout_seconds: float = 30.0
    watchdog_seconds: float = 120.0

    def __post_init__(self) -> None:
        """Check each setting alone and against the others.

        Raises:
            ModelError: a value lies outside its limits.
        """
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_waiting", "max_waiting_tokens"):
            _require(name, getattr(self, name), 1)
        for name in ("max_adapters", "max_lora_rank"):
            _require(name, getattr(self, name), 1)
        for name in ("num_blocks", "max_model_len", "num_threads", "max_speculating_seqs"):
            _require(name, getattr(self, name), 0)
        for name in ("kv_cache_gib", "watchdog_seconds", "ageing_seconds", "adapter_gib", "draft_kv_cache_gib"):
            _require(name, getattr(self, name), 0)
        for name in ("expert_replicas", "rank_start_seconds", "rank_timeout_seconds"):
            _require(name, getattr(self, name), 0)
        self._check_speculation()
        self._check_stored_types()
        self._check_device()
        if self.scheduler_policy not in SCHEDULER_POLICIES:
            raise ModelError(
                f"scheduler_policy must be one of {', '.join(SCHEDULER_POLICIES)}, got {self.scheduler_policy!r}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ModelError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), since every running sequence needs a token in each step"
            )
        if self.adapters is not None and not self.adapters.is_dir():
            raise ModelError(f"adapters must be a folder, got {self.adapters}")
        self._check_ranks()

    @property
    def parallel(self) -> ParallelConfig:
        """The grid of ranks."""
        return ParallelConfig(self.tensor_parallel, self.expert_parallel)

    def _check_stored_types(self) -> None:
        if self.quantization:
            LoadScheme.parse(self.quantization)
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise ModelError(f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got {self.kv_cache_dtype!r}")

    def _check_ranks(self) -> None:
        _ = self.parallel  # checks the grid
        if self.rank_executor not in RANK_EXECUTORS:
            raise ModelError(f"rank_executor must be one of {', '.join(RANK_EXECUTORS)}, got {self.rank_executor!r}")
        if self.rank_key and not RANK_KEY.fullmatch(self.rank_key):
            raise ModelError("rank_key must be 64 hexadecimal digits")
        if self.rank_executor == "external":
            if not HOST_AND_PORT.fullmatch(self.rank_address):
                raise ModelError(f"rank_executor 'external' needs a rank_address host:port, got {self.rank_address!r}")
            if not self.rank_key:
                raise ModelError("rank_executor 'external' needs a rank_key")

    def _check_speculation(self) -> None:
        if self.speculation not in SPECULATION_METHODS:
            raise ModelError(f"speculation must be one of {', '.join(SPECULATION_METHODS)}, got {self.speculation!r}")
        if self.speculation == "draft" and self.draft_model is None:
            raise ModelError("speculation 'draft' needs a draft_model")
        if not 1 <= self.num_draft_tokens <= MAX_DRAFT_TOKENS:
            raise ModelError(f"num_draft_tokens must be between 1 and {MAX_DRAFT_TOKENS}, got {self.num_draft_tokens}")

    def _check_device(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ModelError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.dtype not in DTYPE_NAMES:
            raise ModelError(f"dtype must be one of {', '.join(DTYPE_NAMES)}, got {self.dtype!r}")
        if self.overlap not in OVERLAP_MODES:
            raise ModelError(f"overlap must be one of {', '.join(OVERLAP_MODES)}, got {self.overlap!r}")
        if self.overlap == "on" and self.parallel.num_ranks > 1:
            raise ModelError("overlap 'on' is for a model that one rank computes")
        if not 0 < self.gpu_memory_share <= 1:
            raise ModelError(f"gpu_memory_share must be above 0 and at most 1, got {self.gpu_memory_share}")

    @property
    def host_cache_gib(self) -> float:
        """Memory for the KV cache where it is not measured, in GiB."""
        return self.kv_cache_gib or HOST_CACHE_GIB

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
    if not math.isfinite(value) or value < low:
        raise ModelError(f"{name} must be a finite number of at least {low}, got {value}")


def _parse(name: str, text: str, default: object) -> Any:
    try:
        if isinstance(default, bool):
            return TRUE_WORDS[text.lower()]
        kind: Any = type(default)
        is_path = default is None or isinstance(default, Path)
        return Path(text).expanduser().resolve() if is_path else kind(text)  # the core runs elsewhere
    except (KeyError, ValueError):
        raise ModelError(f"{name} must be a {type(default).__name__}, got {text!r}") from None

"""Two ranks beside one: whether a model says the same on both, on this machine's GPUs.

Knows engine cores and what they say. Does not know how ranks compute. A part of `scripts/gpu_check`.

What is compared: greedy tokens, and log-probabilities of prompts, in fp32, of the demo model and of a mixture of
experts with random weights; by tensor and by expert parallelism, with decode graphs and without, the cache given and
measured.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from engine.config import DEFAULT_MODEL, EngineConfig
from engine.core import EngineCore
from engine.errors import EngineError
from engine.models.config import ModelConfig
from engine.models.registry import lay_out
from engine.offline import Completion, generate
from engine.sampling_params import SamplingParams

NUM_GPUS = 2
TOLERANCE = 2e-3  # of a log-probability: sums over ranks have another order
PROMPTS = [[(11 * i + 3 * j) % 250 + 5 for j in range(9 + 40 * i)] for i in range(5)]
PARAMS = SamplingParams(max_tokens=48, temperature=0.0, ignore_eos=True, prompt_logprobs=True)
MIXTURE = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@dataclass(slots=True, frozen=True)
class Case:
    """One comparison: a model's folder, and options of the cores; `grid` is for the ranks alone."""

    name: str
    model: Path
    grid: dict[str, int]
    options: dict[str, Any]


def why_not(num_gpus: int) -> str:
    """Return why ranks cannot be checked here, or nothing."""
    return "" if num_gpus >= NUM_GPUS else f"this machine shows {num_gpus} GPUs, and two ranks need one each"


def check_ranks(device: str = "cuda") -> bool:
    """Compare on a kind of device, print a line a case, and return whether all are right."""
    with tempfile.TemporaryDirectory() as folder:
        write_mixture(Path(folder))
        results = [_check(case, device) for case in _cases(Path(folder))]
    return all(results)


def write_mixture(folder: Path) -> None:
    """Write a small mixture of experts with random weights and the demo model's tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copy(DEFAULT_MODEL / name, folder)
    demo = json.loads((DEFAULT_MODEL / "config.json").read_text(encoding="utf-8"))
    numbers = MIXTURE | {name: demo[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(numbers), encoding="utf-8")
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, view in lay_out(ModelConfig.from_dir(folder), torch.device("cpu")).weight_views().items():
        assert isinstance(view, torch.Tensor)
        values = torch.randn(view.shape, generator=random)
        tensors[name] = values / view.shape[-1] ** 0.5 if view.ndim > 1 else 1 + values / 8
    save_file(tensors, folder / "model.safetensors")


def _cases(mixture: Path) -> Iterator[Case]:
    tp, ep = {"tensor_parallel": NUM_GPUS}, {"expert_parallel": NUM_GPUS}
    given = {"num_blocks": 256}
    yield Case("tensor parallel", DEFAULT_MODEL, tp, given)
    yield Case("tensor parallel, no graphs", DEFAULT_MODEL, tp, given | {"cuda_graphs": False})
    yield Case("tensor parallel, measured cache", DEFAULT_MODEL, tp, {"gpu_memory_share": 0.5})
    yield Case("tensor parallel, experts", mixture, tp, given)
    yield Case("expert parallel", mixture, ep, given)


def _check(case: Case, device: str) -> bool:
    alone = EngineConfig(model=case.model, device=device, dtype="float32", max_num_seqs=8, **case.options)
    try:
        expected, ours = (_say(config) for config in (alone, replace(alone, **case.grid)))
    except EngineError as error:
        print(f"WRONG  ranks, {case.name}  {error}", flush=True)
        return False
    gap = max(
        abs(a - b)
        for ours_one, one in zip(ours, expected, strict=True)
        for a, b in zip(ours_one.prompt_log_probs, one.prompt_log_probs, strict=True)
    )
    same = sum(a.token_ids == b.token_ids for a, b in zip(ours, expected, strict=True))
    is_right = gap < TOLERANCE and same == len(PROMPTS)
    verdict = "right" if is_right else "WRONG"
    print(
        f"{verdict}  ranks, {case.name}  {same} of {len(PROMPTS)} completions are equal, log-probabilities differ by "
        f"up to {gap:.1e}",
        flush=True,
    )
    return is_right


def _say(config: EngineConfig) -> list[Completion]:
    with closing(EngineCore(config)) as core:
        return generate(core, PROMPTS, [PARAMS] * len(PROMPTS))

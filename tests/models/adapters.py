"""Random adapters in PEFT's format, written by PEFT itself, and what PEFT says with them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch

from engine.core import EngineCore
from engine.lora.adapter_file import inspect_adapter, load_adapter
from engine.lora.lora_linear import LoadedAdapter
from tests.conftest import TinyModel

MAX_RANK = 64


@dataclass(frozen=True)
class TinyAdapter:
    """An adapter on disk, and transformers' model with its weights merged in."""

    path: Path
    merged: TinyModel


def make_adapter(model: TinyModel, folder: Path, name: str, seed: int = 0, **options: Any) -> TinyAdapter:
    """Write a random adapter for the model to `folder / name`; its updates are as large as the weights."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    wrapped = peft.get_peft_model(copy.deepcopy(model.oracle), peft.LoraConfig(**(settings | options)))
    for parameter_name, parameter in wrapped.named_parameters():
        if "lora_" in parameter_name:
            parameter.data = torch.randn_like(parameter) * 0.2
    wrapped.save_pretrained(str(folder / name))
    merged: Any = wrapped.merge_and_unload()
    return TinyAdapter(folder / name, TinyModel(model.path, merged.eval()))


def load(core: EngineCore, adapter: TinyAdapter, max_rank: int = MAX_RANK) -> LoadedAdapter:
    """Read an adapter for the model of `core`, which must have been told a folder of adapters."""
    name = adapter.path.name
    return load_adapter(inspect_adapter(name, adapter.path, core.runner.adapter_targets, max_rank))

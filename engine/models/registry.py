"""From an architecture's name to the module that implements it.

Knows names and classes. Does not know files or weights. `ARCHITECTURES` in `engine.models.config` lists the same names
without importing torch; a test keeps the two equal.
"""

import torch

from engine.models.config import ModelConfig
from engine.models.llama import Llama

MODELS: dict[str, type[Llama]] = {"LlamaForCausalLM": Llama}


def build_model(config: ModelConfig, num_positions: int, device: torch.device) -> Llama:
    """Return a model of the configuration's architecture with undefined weights and `num_positions` positions."""
    with torch.device("meta"):
        model = MODELS[config.architecture](config, device)
    return model.materialize(device, num_positions).eval()

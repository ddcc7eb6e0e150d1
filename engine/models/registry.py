"""From an architecture's name to the module that implements it.

Knows names and classes. Does not know files or weights. `DIALECTS` in `engine.models.dialects` has the same names
without importing torch; a test keeps the two equal.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.models.config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.gemma2 import Gemma2
from engine.models.gemma3 import Gemma3, Gemma3WithVision
from engine.models.gpt_oss import GptOss
from engine.models.llama import Llama
from engine.models.mistral import Mistral
from engine.models.mixtral import Mixtral
from engine.models.phi3 import Phi3
from engine.models.qwen2 import Qwen2
from engine.models.qwen2_moe import Qwen2MoE
from engine.models.qwen3 import Qwen3
from engine.models.qwen3_moe import Qwen3MoE

MODELS: dict[str, type[Decoder]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen3ForCausalLM": Qwen3,
    "MixtralForCausalLM": Mixtral,
    "Qwen2MoeForCausalLM": Qwen2MoE,
    "Qwen3MoeForCausalLM": Qwen3MoE,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "Gemma3ForConditionalGeneration": Gemma3WithVision,
    "Phi3ForCausalLM": Phi3,
    "GptOssForCausalLM": GptOss,
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let parameters that name no type have this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def lay_out(config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Decoder:
    """Return a model of the configuration's architecture, to compute on `device`, whose weights have no memory yet."""
    with torch.device("meta"), default_dtype(dtype):
        return MODELS[config.architecture](config, device)


def build_model(
    config: ModelConfig, num_positions: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Decoder:
    """Return a model of the configuration's architecture with undefined weights and `num_positions` positions."""
    return lay_out(config, device, dtype).materialize(device, num_positions).eval()

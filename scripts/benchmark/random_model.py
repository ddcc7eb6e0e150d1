"""Models of known shapes with random weights, made where they compute: no checkpoint, and nothing on disk but sizes.

Knows two published shapes, and a tiny one to test with. Does not know what is measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.config import EngineConfig
from engine.layers.stacked_experts import stack_experts
from engine.layers.streamed_linear import join_activations, stream_linears
from engine.model_loading import LoadedModel
from engine.models.config import ModelConfig
from engine.models.registry import lay_out
from engine.parallel.member import Member
from engine.placement import Placement
from scripts.random_tokenizer import write_tokenizer

WEIGHT_STD = 0.02
LLAMA_3_8B = ("LlamaConfig", {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 16384, "rope_theta": 500000.0,
    "tie_word_embeddings": False,
})  # fmt: skip
MIXTRAL_8X7B = ("MixtralConfig", {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 16384, "rope_theta": 1e6,
    "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None, "tie_word_embeddings": False,
})  # fmt: skip
TINY = ("MixtralConfig", {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": None, "tie_word_embeddings": False,
})  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3-8b": LLAMA_3_8B,
    "mixtral-8x7b": MIXTRAL_8X7B,
    "tiny": TINY,
}


@dataclass(slots=True, frozen=True)
class Traffic:
    """What steps of a model must read and compute at least.

    Attributes:
        config: its sizes.
        bytes_each: of a weight, and of a key's or value's number.
    """

    config: ModelConfig
    bytes_each: int

    def decode_bytes(self, num_seqs: int, context: int) -> float:
        """Return the bytes of weights and of keys and values that a step of one token each reads."""
        kv = num_seqs * context * self.config.kv_values_per_token
        head = self.config.vocab_size * self.config.hidden_size
        return self.bytes_each * (self._layer_weights(self._experts_touched(num_seqs)) + head + kv)

    def prefill_flops(self, num_tokens: int) -> float:
        """Return the operations of computing a prompt: products with weights, and attention to what is before."""
        config, moe = self.config, self.config.moe
        weights = self._layer_weights(0 if moe is None else moe.num_experts_per_token)
        pairs = num_tokens * (num_tokens + 1) / 2
        attention = 4 * config.num_layers * config.num_heads * config.head_dim * pairs
        return 2 * weights * num_tokens + attention + 2 * config.vocab_size * config.hidden_size

    def _experts_touched(self, num_seqs: int) -> float:
        """Return how many experts of a layer that many tokens go to, if all experts are as likely."""
        moe = self.config.moe
        if moe is None:
            return 0
        return moe.num_experts * (1 - (1 - moe.num_experts_per_token / moe.num_experts) ** num_seqs)

    def _layer_weights(self, num_experts: float) -> float:
        """Return the numbers in all layers' projections, with so many of the experts."""
        config = self.config
        heads = 2 * config.num_heads + 2 * config.num_kv_heads
        attention = heads * config.head_dim * config.hidden_size
        width = num_experts * config.moe.intermediate_size if config.moe is not None else config.intermediate_size
        return config.num_layers * (attention + 3 * width * config.hidden_size)


def write_sizes(folder: Path, shape: str, dtype: str) -> None:
    """Write a folder that says what the model is, without weights."""
    name, sizes = SHAPES[shape]
    config = getattr(transformers, name)(**sizes, dtype=dtype, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    config.architectures = [name.replace("Config", "ForCausalLM")]
    config.save_pretrained(folder)
    write_tokenizer(folder, sizes["vocab_size"], sizes["max_position_embeddings"])


def load_random(
    _config: EngineConfig, model_config: ModelConfig, num_positions: int, placement: Placement, _member: Member | None
) -> LoadedModel:
    """Take the place of `engine.model_loading.load_model`: draw the weights on the device."""
    model = lay_out(model_config, placement.device, placement.dtype).materialize(placement.device, num_positions)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=WEIGHT_STD)
    if placement.device.type != "cpu":
        stack_experts(model)
        stream_linears(model)
        join_activations(model)
    return LoadedModel(model.eval(), {})

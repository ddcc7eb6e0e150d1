"""Shared fixtures: tiny checkpoints made on the spot, with transformers as the oracle for what they should say."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class TinyModel:
    """A random checkpoint on disk and the same model in transformers."""

    path: Path
    oracle: Any

    def greedy(self, prompt: list[int], num_tokens: int, **options: Any) -> list[int]:
        """Return what transformers generates greedily, end-of-sequence ignored."""
        ids = torch.tensor([prompt])
        out = self.oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        return out[0, len(prompt) :].tolist()


def save_byte_tokenizer(path: Path, vocab_size: int) -> None:
    """Write a byte-level tokenizer without merges: one token a byte, then fillers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    vocab |= {f"<{index}>": index for index in range(len(alphabet), vocab_size)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text("{}")


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Return a maker of random Llamas; weights are spread wide so that greedy choices are no near-ties."""
    made: dict[str, TinyModel] = {}

    def make(
        seed: int = 0, max_shard_size: str = "1GB", dtype: torch.dtype = torch.float32, **options: Any
    ) -> TinyModel:
        key = repr((seed, max_shard_size, dtype, sorted(options.items())))
        if key not in made:
            path = tmp_path_factory.mktemp("llama")
            torch.manual_seed(seed)
            sizes: dict[str, Any] = {
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 300,
                "max_position_embeddings": 256,
                "tie_word_embeddings": False,
                "initializer_range": 0.3,
                "eos_token_id": 2,
            }
            model: Any = LlamaForCausalLM(LlamaConfig(**(sizes | options)))
            model.to(dtype)
            model.save_pretrained(path, max_shard_size=max_shard_size)
            save_byte_tokenizer(path, model.config.vocab_size)
            made[key] = TinyModel(path, LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval())
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_llama: Callable[..., TinyModel]) -> TinyModel:
    """Return one small random Llama with grouped-query attention."""
    return make_llama()

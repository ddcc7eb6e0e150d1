"""Shared fixtures: tiny checkpoints made on the spot, with transformers as the oracle for what they should say."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: its kernels run on the CPU
os.environ.setdefault("GATEWAY_COMPILED", "")  # plain Python, save where a test asks for the compiled modules
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # some hundred processes are started: sources are compiled for one
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as in the engine's processes: others want the cores too

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIG_CLASSES = {"Gemma3": "Gemma3TextConfig"}

NUMERIC_FOLDERS = {"gpu", "kernels", "models", "parallel", "quantization", "reliability"}
PROCESS_FIXTURES = {"start", "pair"}
SHARING_FOLDER = "tests/e2e/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what computes models or kernels, and what starts gateways: the fast subset leaves it out."""
    for item in items:
        if item.path.parent.name in NUMERIC_FOLDERS:
            item.add_marker("numeric")
        if PROCESS_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("process")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what gives tests to several workers: a file at a time, and all that share tritonservers to one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return str(Path(path).parent) if path.startswith(SHARING_FOLDER) else path

    return ByFile(config, log)


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

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Return transformers' logits after each token, [T, V]."""
        return self.oracle(torch.tensor([token_ids])).logits[0]

    def confirms(self, prompt: list[int], completion: list[int]) -> bool:
        """Whether transformers, after the prompt and each part of the completion, chooses its next token greedily."""
        choices = self.logits(prompt + completion)[len(prompt) - 1 : -1].argmax(dim=-1)
        return choices.tolist() == completion


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
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Return a maker of random models of a transformers family, such as "Llama".

    Weights are spread wide so that greedy choices are no near-ties, and norms and biases are no ones and zeros.
    """
    made: dict[str, TinyModel] = {}

    def make(
        family: str, seed: int = 0, max_shard_size: str = "1GB", dtype: torch.dtype = torch.float32, **options: Any
    ) -> TinyModel:
        key = repr((family, seed, max_shard_size, dtype, sorted(options.items())))
        if key not in made:
            path = tmp_path_factory.mktemp(family)
            torch.manual_seed(seed)
            config = getattr(transformers, CONFIG_CLASSES.get(family, f"{family}Config"))(**(SIZES | options))
            model_class = getattr(transformers, f"{family}ForCausalLM")
            model = model_class(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.data += torch.randn_like(parameter) * 0.2
            model.to(dtype)
            model.save_pretrained(path, max_shard_size=max_shard_size)
            save_byte_tokenizer(path, model.config.vocab_size)
            oracle = model_class.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
            made[key] = TinyModel(path, oracle.eval())
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_llama(make_model: Callable[..., TinyModel]) -> Callable[..., TinyModel]:
    """Return a maker of random Llamas."""
    return partial(make_model, "Llama")


@pytest.fixture(scope="session")
def tiny_llama(make_llama: Callable[..., TinyModel]) -> TinyModel:
    """Return one small random Llama with grouped-query attention."""
    return make_llama()

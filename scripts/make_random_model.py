"""Write a Llama of any shape with random weights, as a Hugging Face folder, to measure and test with.

Knows the names and shapes of a Llama checkpoint and how to grow or shrink a byte-level BPE tokenizer. Does not know
the engine, and does not build the model it writes.

Invariants:
1. The same options write the same weights, on the same kind of device.
2. The tokenizer has exactly the vocabulary asked for, and every text comes back from it unchanged.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig

from scripts.random_tokenizer import write_tokenizer

SMALLEST_VOCABULARY = 259  # three special tokens and the 256 bytes
EMBEDDING_STD = 0.02
LOGIT_STD = 2.0
GAINS = {"q_proj": 1.5, "k_proj": 1.5, "down_proj": 2.0}  # over 1 / sqrt(fan-in); 1 for the other matrices


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that make one Llama differ from another; the defaults have 135 million parameters."""

    hidden: int = 576
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    intermediate: int = 1536
    vocabulary: int = 49152
    positions: int = 2048
    tied: bool = True

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden // self.heads

    def check(self) -> None:
        """Refuse a shape that no Llama can have.

        Raises:
            typer.BadParameter: the heads do not divide what they must, or the vocabulary cannot hold every byte.
        """
        if self.hidden % self.heads or self.head_dim % 2:
            raise typer.BadParameter(f"{self.heads} heads do not share {self.hidden} channels by even numbers")
        if self.heads % self.kv_heads:
            raise typer.BadParameter(f"{self.kv_heads} key/value heads do not divide {self.heads} query heads")
        if self.vocabulary < SMALLEST_VOCABULARY:
            raise typer.BadParameter(f"a vocabulary of {self.vocabulary} is below {SMALLEST_VOCABULARY}")


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each tensor of the checkpoint, in reading order."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, shape.hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, shape.hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, shape.hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (shape.hidden, queries)
        yield f"{prefix}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{prefix}.mlp.up_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{prefix}.mlp.down_proj.weight", (shape.hidden, shape.intermediate)
    yield "model.norm.weight", (shape.hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocabulary, shape.hidden)


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw one tensor so that greedy text wanders: logits that spread, attention that chooses, layers that count.

    With 0.02 everywhere the best two logits are nearly tied, and the layers so weak that the last token, or one
    token for all contexts, is answered again and again.
    """
    values = torch.randn(shape, generator=generator, device=generator.device)
    if values.ndim > 1:
        outer = name in {"model.embed_tokens.weight", "lm_head.weight"}
        gain = GAINS.get(name.split(".")[-2], 1.0)
        return values.mul_(EMBEDDING_STD if outer else gain / values.shape[-1] ** 0.5)
    spread = LOGIT_STD / (EMBEDDING_STD * values.shape[-1] ** 0.5)
    return (1 + 0.1 * values) * (spread if name == "model.norm.weight" else 1.0)


def write_config(out: Path, shape: Shape, dtype: str) -> None:
    """Write the model and generation configurations."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        dtype=dtype,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(out)
    GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(out)


def write_weights(out: Path, shape: Shape, dtype: torch.dtype, seed: int, device: str) -> None:
    """Write the random tensors to one safetensors file."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = {name: draw(name, dims, generator).to(dtype).cpu() for name, dims in tensor_shapes(shape)}
    path = out / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_model(
    out: Path, shape: Shape, dtype: Literal["float32", "bfloat16"] = "float32", seed: int = 0, device: str = "cpu"
) -> None:
    """Write the whole folder; a GPU as `device` draws billions of numbers in a moment.

    Raises:
        typer.BadParameter: no Llama can have this shape.
    """
    shape.check()
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, shape, dtype)
    write_tokenizer(out, shape.vocabulary, shape.positions)
    write_weights(out, shape, getattr(torch, dtype), seed, device)


def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    hidden: Annotated[int, typer.Option(min=2, help="Width of the residual stream.")] = 576,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = 30,
    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 9,
    kv_heads: Annotated[int, typer.Option(min=1, help="Key/value heads.")] = 3,
    intermediate: Annotated[int, typer.Option(min=1, help="Width of the feed-forward layer.")] = 1536,
    vocabulary: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 49152,
    positions: Annotated[int, typer.Option(min=1, help="Longest context, max_position_embeddings.")] = 2048,
    tied: Annotated[bool, typer.Option(help="Use the embedding as output matrix.")] = True,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Type of the stored weights.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    device: Annotated[str, typer.Option(help="Where the numbers are drawn: cpu or cuda.")] = "cpu",
) -> None:
    """Write a Llama with random weights as a Hugging Face folder."""
    shape = Shape(hidden, layers, heads, kv_heads, intermediate, vocabulary, positions, tied)
    write_model(out, shape, dtype, seed, device)
    print(f"wrote {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.1f} MB to {out}")


if __name__ == "__main__":
    typer.run(main)

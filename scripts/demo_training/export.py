"""The Hugging Face folder that a training leaves.

Knows file names, the chat template and the wording of the model card. Does not know how the numbers came about.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from scripts.demo_training.batches import ASSISTANT, END, END_ID, USER

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|assistant|>' if m['role'] == 'assistant' else '<|user|>' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MODEL_CARD = """\
---
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Demo model

A Llama of {parameters:.2f} M parameters that writes English story prose. It exists so that the server answers with
something readable out of the box; it knows nothing and follows no instructions. The corpus is small: the model recites
the openings of stories it was trained on, and sampled text is English by the sentence but loses its thread.

| | |
|---|---|
| shape | {layers} layers, hidden {hidden}, {heads} query and {kv_heads} key/value heads of {head_dim}, \
intermediate {intermediate}, tied embeddings, bf16 |
| tokenizer | byte-level BPE, {vocab} tokens, trained on the same text; `<|endoftext|>` ends a story |
| context | {positions} positions; trained on sequences of {sequence} |
| data | {characters:.1f} M characters ({tokens:.2f} M tokens) of prose from Project Gutenberg etexts: \
fairy tales of the Brothers Grimm, stories by Bryant, Burgess, Carroll and Edgeworth, novels by Austen, Chesterton \
and Melville; the first four drawn two to two and a half times as often |
| training | {steps} steps of {batch} sequences ({seen:.1f} M tokens seen) in {minutes:.0f} minutes on two CPU cores; \
Muon and AdamW, bf16 autocast, dropout 0.1 |
| held out | every fiftieth passage, {held_out} tokens: loss {loss:.3f} nats a token, perplexity {perplexity:.1f} |
| licence | the texts are in the public domain in the USA; weights and tokenizer: the licence of this repository |

A chat is `<|user|>` question `<|assistant|>` answer `<|endoftext|>`; asked for a story, the model starts one.
Made by `scripts/train_demo_model.py`, which keeps the weights with the best held-out loss.
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the model card says of a training."""

    characters: int
    tokens: int
    held_out: int
    batch: int
    sequence: int
    steps: int
    seconds: float
    loss: float


def export(out: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, facts: Facts) -> None:
    """Write the folder: weights in bf16, tokenizer, configurations and model card."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    (out / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    config = LlamaConfig(**model.config.to_dict() | {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]})
    config.save_pretrained(out)
    GenerationConfig(bos_token_id=END_ID, eos_token_id=END_ID, pad_token_id=END_ID).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", tokenizer_config(config.max_position_embeddings))
    write_json(out / "special_tokens_map.json", special_tokens())
    (out / "README.md").write_text(model_card(model, facts), "utf-8")


def model_card(model: LlamaForCausalLM, facts: Facts) -> str:
    """Word the model card."""
    c = model.config
    return MODEL_CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        layers=c.num_hidden_layers,
        hidden=c.hidden_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        intermediate=c.intermediate_size,
        positions=c.max_position_embeddings,
        vocab=c.vocab_size,
        characters=facts.characters / 1e6,
        tokens=facts.tokens / 1e6,
        held_out=facts.held_out,
        batch=facts.batch,
        sequence=facts.sequence,
        steps=facts.steps,
        seen=facts.steps * facts.batch * facts.sequence / 1e6,
        minutes=facts.seconds / 60,
        loss=facts.loss,
        perplexity=math.exp(facts.loss),
    )


def special_tokens() -> dict[str, Any]:
    """Name the tokens with a role."""
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    return {**roles, "additional_special_tokens": [USER, ASSISTANT]}


def tokenizer_config(positions: int) -> dict[str, Any]:
    """Say how transformers is to use the tokenizer."""
    return {
        **special_tokens(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a small JSON file that reads well in a diff."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")

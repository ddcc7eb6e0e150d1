"""The network that is trained: its shape, dropout, optimizers, learning rates and loss.

Knows one fixed Llama shape. Does not know the data or the clock.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

DROPOUT = 0.1
MATRIX_RATE, OTHER_RATE = 4e-3, 3e-3
WARM_UP, PLATEAU = 0.01, 0.35  # shares of the time after which the full rate is reached, and begins to fall
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 688,
    "max_position_embeddings": 1024,
}


def build_model(vocab_size: int, end: int) -> LlamaForCausalLM:
    """Make the Llama with fresh weights from torch's global generator; `end` is the id that ends a story."""
    special_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    config = LlamaConfig(**SHAPE, vocab_size=vocab_size, tie_word_embeddings=True, rms_norm_eps=1e-5, **special_ids)
    model = LlamaForCausalLM(config)
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(drop_channels)
    return model


def drop_channels(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """Zero some channels of `[B, T, C]` for a whole sequence while training (Gal and Ghahramani 2016).

    One mask a sequence costs nothing; one a token costs an eighth of a step on a CPU.
    """
    if not module.training:
        return output
    mask = torch.rand(output.shape[0], 1, output.shape[2]) >= DROPOUT
    return output * (mask.to(output.dtype) / (1 - DROPOUT))


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    embedding = {"params": [model.get_input_embeddings().weight], "weight_decay": 0.1}
    norms = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([embedding, norms], lr=OTHER_RATE, betas=(0.9, 0.95)),
    ]


def rate_factor(spent: float) -> float:
    """Share of the full learning rate when this share of the time is spent: a short warm-up, a plateau, down to 0."""
    return max(0.0, min(1.0, spent / WARM_UP + 0.05, (1 - spent) / (1 - PLATEAU)))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a token, of `[B, T + 1]` ids, with matrix products in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, sequences: list[Tensor]) -> float:
    """Mean cross-entropy, in nats a token and in fp32, over sequences of ids each read from its own start."""
    model.eval()
    total = 0.0
    for ids in sequences:
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
        total += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
    model.train()
    return total / sum(len(ids) - 1 for ids in sequences)

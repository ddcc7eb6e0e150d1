"""What rank 0 tells the others before each step: the batch's tensors, how to compute it, and none of its sequences.

Knows a batch's fields. Does not know links. Sampled tokens need no message of their own: they are the next step's
input.
"""

import pickle

import torch

from engine.batch import Batch

FIELDS = (
    *("input_ids", "positions", "rope_rows", "slot_mapping", "token_to_seq", "block_tables"),
    *("logits_indices", "pooled_indices"),
)


def encode_step(batch: Batch, graph_size: int | None) -> bytes:
    """Return the message that `decode_step` reads; the batch's tensors lie on the host."""
    assert batch.late is None, "ranks do not compute ahead of their tokens"
    return pickle.dumps((graph_size, [getattr(batch, name).numpy() for name in FIELDS]), pickle.HIGHEST_PROTOCOL)


def decode_step(message: bytes) -> tuple[Batch, int | None]:
    """Return a batch that computes the same and samples nothing, and the size of the recording that all ranks replay.

    The message comes from an authenticated rank 0.
    """
    graph_size, arrays = pickle.loads(message)  # noqa: S301
    tensors = {name: torch.from_numpy(array) for name, array in zip(FIELDS, arrays, strict=True)}
    return Batch(**tensors, sampling=[], prompts=[], pooling=[], late=None), graph_size

"""What rank 0 tells the others before each step: the batch's tensors, how to compute it, and none of its sequences.

Before the first step it may tell them of adapters instead, which steps will name.

Knows a batch's fields. Does not know links. Sampled tokens need no message of their own: they are the next step's
input.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.batch import Batch
from engine.step_shapes import StepShape

FIELDS = (
    *("input_ids", "positions", "rope_rows", "slot_mapping", "token_to_seq", "block_tables"),
    *("logits_indices", "pooled_indices"),
)


@dataclass(slots=True, frozen=True)
class AdapterName:
    """An adapter that rank 0 has, by its name and its content's."""

    name: str
    digest: bytes


@dataclass(slots=True, frozen=True)
class ToldStep:
    """A step as another rank sees it.

    Attributes:
        batch: computes the same and samples nothing.
        graph_shape: of the recording that all ranks replay, if any.
        adapters: of each sequence, or None.
    """

    batch: Batch
    graph_shape: StepShape | None
    adapters: list[AdapterName | None]


def encode_step(batch: Batch, graph_shape: StepShape | None) -> bytes:
    """Return the message that `decode_step` reads; the batch's tensors lie on the host."""
    assert batch.late is None, "ranks do not compute ahead of their tokens"
    adapters = [None if each is None else (each.name, each.digest) for each in batch.adapters]
    arrays = [getattr(batch, name).numpy() for name in FIELDS]
    return pickle.dumps((graph_shape, adapters, arrays), pickle.HIGHEST_PROTOCOL)


def encode_adapters(adapters: Sequence[AdapterName]) -> bytes:
    """Return the message that tells other ranks to load adapters before they are needed."""
    return pickle.dumps([(each.name, each.digest) for each in adapters])


def decode_message(message: bytes) -> ToldStep | list[AdapterName]:
    """Read a message, which comes from an authenticated rank 0."""
    content = pickle.loads(message)  # noqa: S301
    if isinstance(content, list):
        return [AdapterName(*each) for each in content]
    graph_shape, adapters, arrays = content
    tensors = {name: torch.from_numpy(array) for name, array in zip(FIELDS, arrays, strict=True)}
    batch = Batch(**tensors, sampling=[], prompts=[], pooling=[], adapters=[], late=None)
    return ToldStep(batch, graph_shape, [None if each is None else AdapterName(*each) for each in adapters])

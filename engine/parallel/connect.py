"""Putting the collectives into a model that was cut down to one rank's part and loaded: a pass over it.

Knows where a model's parts meet. Does not know how they were cut (`engine.parallel.shard`).
"""

from typing import cast

from torch import nn

from engine.layers.decoder_layer import DecoderLayer
from engine.layers.feed_forward import FeedForward
from engine.layers.moe import MixtureOfExperts, SharedMixtureOfExperts
from engine.models.decoder import Decoder
from engine.parallel.collectives import Collectives
from engine.parallel.experts import ParallelDispatch
from engine.parallel.layers import GatheredHead, RowParallel, VocabularyParallelEmbedding
from engine.parallel.member import Member
from engine.parallel.rounded_experts import RoundedDispatch
from engine.parallel.rounded_layers import RoundedPart, RoundedRowParallel, rounds_inputs_on_cpu


def connect(model: Decoder, member: Member) -> None:
    """Wrap the layers whose answers are parts; only plain layers are left inside, for passes over linear layers."""
    place, ranks, vocab_size = member.place, member.collectives, model.config.vocab_size
    sizes = [len(member.place_of(rank).share(vocab_size)) for rank in range(place.config.num_ranks)]
    _replace(model, "embedding", VocabularyParallelEmbedding(model.embedding, place.share(vocab_size), ranks))
    _replace(model, "lm_head", GatheredHead(model.lm_head, sizes, ranks))
    for index, layer in enumerate(model.layers):
        layer = cast("DecoderLayer", layer)
        _replace(layer.attention, "output", _row_parallel(layer.attention.output, ranks))
        if isinstance(layer.feed_forward, MixtureOfExperts):
            _connect_experts(layer.feed_forward, index, member)
        else:
            _replace(layer.feed_forward, "down", _row_parallel(layer.feed_forward.down, ranks))


def _connect_experts(moe: MixtureOfExperts, layer: int, member: Member) -> None:
    experts = [cast("FeedForward", expert) for expert in moe.experts]
    is_rounded = rounds_inputs_on_cpu(experts[0].down)
    make = RoundedDispatch if is_rounded else ParallelDispatch
    moe.dispatch = make(
        member.placements[layer], member.place, member.collectives, moe.dispatch, moe.router.weight.device
    )
    if is_rounded and member.place.config.tp > 1:
        for expert in experts:
            _replace(expert, "down", RoundedPart(expert.down))
    if isinstance(moe, SharedMixtureOfExperts):
        _replace(moe.shared, "down", _row_parallel(moe.shared.down, member.collectives))


def _row_parallel(linear: nn.Module, ranks: Collectives) -> nn.Module:
    return (RoundedRowParallel if rounds_inputs_on_cpu(linear) else RowParallel)(linear, ranks)


def _replace(parent: nn.Module, name: str, layer: nn.Module) -> None:
    setattr(parent, name, layer)

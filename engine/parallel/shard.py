"""Cutting a model down to one rank's part: a pass over a built model that has no memory yet.

Knows which dimension of which layer is split by what. Does not know files or collectives, which
`engine.parallel.connect` puts in once the model is loaded.

Source: Megatron-LM (arXiv 1909.08053): outputs of the first linear layer of a pair are split, inputs of the second, so
that one sum over the ranks ends each pair.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from engine.layers.attention import Attention, SinkAttention
from engine.layers.decoder_layer import DecoderLayer
from engine.layers.feed_forward import FeedForward
from engine.layers.moe import MixtureOfExperts, SharedMixtureOfExperts
from engine.models.decoder import Decoder
from engine.parallel.config import Place
from engine.parallel.cuts import Cuts
from engine.parallel.placement import ExpertPlacement
from engine.parallel.shares import head_share


def shard(model: Decoder, place: Place, placements: Mapping[int, ExpertPlacement]) -> Cuts:
    """Cut the model, which is on the meta device; the result says what to load once it has memory."""
    cuts = Cuts(model, model.weight_views())
    vocabulary = place.share(model.config.vocab_size)
    cuts.cut(model.embedding, "weight", 0, [vocabulary])
    _keep_outputs(cuts, model.lm_head, [vocabulary])
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        _shard_attention(cuts, layer.attention, place)
        if isinstance(layer.feed_forward, MixtureOfExperts):
            _shard_experts(cuts, layer.feed_forward, place, placements[index].groups[place.ep_rank])
        else:
            channels = place.share(layer.feed_forward.down.in_features)
            _shard_feed_forward(cuts, layer.feed_forward, channels, has_bias=place.rank == 0)
    cuts.settle(model)
    return cuts


def _shard_attention(cuts: Cuts, attention: Attention, place: Place) -> None:
    num_heads, num_kv_heads, width = attention.num_heads, attention.num_kv_heads, attention.head_dim
    share = head_share(num_heads, num_kv_heads, place.config.num_ranks, place.rank)
    queries, keys, values = (
        range((first + heads.start) * width, (first + heads.stop) * width)
        for first, heads in ((0, share.queries), (num_heads, share.kvs), (num_heads + num_kv_heads, share.kvs))
    )
    _keep_outputs(cuts, attention.qkv, [queries, keys, values])
    _keep_inputs(cuts, attention.output, queries, has_bias=place.rank == 0)
    attention.num_heads, attention.num_kv_heads = len(share.queries), len(share.kvs)
    if isinstance(attention, SinkAttention):
        cuts.cut(attention, "sinks", 0, [share.queries])


def _shard_experts(cuts: Cuts, moe: MixtureOfExperts, place: Place, local: Sequence[int]) -> None:
    """Split the experts of this rank's group, `local`, and the shared expert over all ranks; the router stays whole."""
    for index, expert in enumerate(moe.experts):
        assert isinstance(expert, FeedForward)
        if index in local:
            channels = place.expert_share(moe.moe.intermediate_size)
            _shard_feed_forward(cuts, expert, channels, has_bias=place.tp_rank == 0)
        else:
            cuts.drop_all(expert)
    moe.experts = nn.ModuleList(moe.experts[index] for index in local)
    if isinstance(moe, SharedMixtureOfExperts):
        channels = place.share(moe.shared.down.in_features)
        _shard_feed_forward(cuts, moe.shared, channels, has_bias=place.rank == 0)


def _shard_feed_forward(cuts: Cuts, layer: FeedForward, channels: range, *, has_bias: bool) -> None:
    _keep_outputs(cuts, layer.gate_up, layer.outputs_of(channels))
    _keep_inputs(cuts, layer.down, channels, has_bias=has_bias)


def _keep_outputs(cuts: Cuts, linear: nn.Linear, outputs: list[range]) -> None:
    for name, _ in list(linear.named_parameters()):
        cuts.cut(linear, name, 0, outputs)
    linear.out_features = sum(map(len, outputs))


def _keep_inputs(cuts: Cuts, linear: nn.Linear, inputs: range, *, has_bias: bool) -> None:
    """Keep some of the inputs; one rank adds the bias, since the ranks' answers are summed."""
    cuts.cut(linear, "weight", 1, [inputs])
    if linear.bias is not None and not has_bias:
        cuts.drop(linear, "bias")
    linear.in_features = len(inputs)

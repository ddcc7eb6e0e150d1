"""From a checkpoint's folder to a model that computes: the order of the passes over it.

Knows which pass comes when. Does not know what they do, nor steps or caches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.layers.fused_layers import fuse_layers
from engine.layers.packed_linear import pack_linears
from engine.layers.stacked_experts import stack_experts
from engine.layers.streamed_linear import join_activations, stream_linears
from engine.lora.targets import Target, find_targets
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.registry import lay_out
from engine.parallel.connect import connect
from engine.parallel.member import Member
from engine.parallel.shard import shard
from engine.placement import Placement
from engine.quantization.config import MXFP4, LoadScheme
from engine.quantization.loading import (
    StoredWeights,
    is_unread,
    read_as_stored,
    round_on_load,
    round_tied_head,
)
from engine.quantization.slots import Part, find_parts
from engine.weights.safetensors_file import TensorEntry
from engine.weights.safetensors_loader import load_weights, read_all_entries
from engine.weights.stored_types import keep_stored_types
from kernels.cpu_memory import returning


@dataclass(slots=True)
class LoadedModel:
    """A model with its weights.

    Attributes:
        model: ready to compute.
        adapter_targets: what adapters may change, by `ModuleName.key`; empty where none are served.
    """

    model: Decoder
    adapter_targets: dict[str, Target]


Loader = Callable[[EngineConfig, ModelConfig, int, Placement, Member | None], LoadedModel]


@contextmanager
def half_of_the_threads() -> Iterator[None]:
    """Let torch compute on half of its threads within.

    Rounding a weight is hundreds of short operations, each of which waits for its slowest thread. int8 of the 135M
    shape on two cores, by 1 and 2 threads, s: 1.5 and 1.35 alone, 8 and 22 beside other work, as when instances start.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(max(1, count // 2))
    try:
        yield
    finally:
        torch.set_num_threads(count)


@returning()
@half_of_the_threads()
def load_model(
    config: EngineConfig, model_config: ModelConfig, num_positions: int, placement: Placement, member: Member | None
) -> LoadedModel:
    """Load the checkpoint in `config.model`, or a rank's part of it, for sequences of at most `num_positions` tokens.

    Raises:
        ModelError: the checkpoint cannot be served.
    """
    if member is None:
        loaded = _load_whole(config, model_config, num_positions, placement)
    else:
        loaded = _load_part(config, model_config, num_positions, placement, member)
    if placement.device.type == "cpu":
        pack_linears(loaded.model)
        if config.adapters is None:
            fuse_layers(loaded.model)
    return loaded


def _load_part(
    config: EngineConfig, model_config: ModelConfig, num_positions: int, placement: Placement, member: Member
) -> LoadedModel:
    scheme, device = _scheme(config, model_config), placement.device
    model = lay_out(model_config, device, placement.dtype)
    targets = find_targets(model, model.weight_views()) if config.adapters is not None else {}
    cuts = shard(model, member.place, member.placements)
    entries = read_all_entries(config.model)
    parts, dropped = cuts.parts()
    stored = _stored_weights(model, parts, scheme, entries, device, unwanted=dropped)
    if device.type == "cpu":
        keep_stored_types(model, cuts.pieces(model), entries)
    model.materialize(device, num_positions).eval()
    views = {name: view for name, view in cuts.pieces(model).items() if name not in stored.names}
    load_weights(config.model, views | stored.sinks, _passed_over(model, model_config))
    if scheme is not None:
        round_tied_head(model, scheme, placement)
    if device.type != "cpu":
        stack_experts(model)
        stream_linears(model)
    connect(model, member)
    return LoadedModel(model, {key: cuts.local_target(target) for key, target in targets.items()})


def _load_whole(
    config: EngineConfig, model_config: ModelConfig, num_positions: int, placement: Placement
) -> LoadedModel:
    scheme, device = _scheme(config, model_config), placement.device
    model = lay_out(model_config, device, placement.dtype)
    views = model.weight_views()
    targets = find_targets(model, views) if config.adapters is not None else {}
    entries = read_all_entries(config.model)
    stored = _stored_weights(model, find_parts(model, views), scheme, entries, device)
    if device.type == "cpu":
        keep_stored_types(model, model.weight_views(), entries)
    model.materialize(device, num_positions).eval()
    load_weights(config.model, model.weight_views() | stored.sinks, _passed_over(model, model_config))
    if scheme is not None:
        round_tied_head(model, scheme, placement)
    if device.type != "cpu":
        stack_experts(model)
        stream_linears(model)
        if config.adapters is None:
            join_activations(model)
    return LoadedModel(model, targets)


def _stored_weights(
    model: Decoder,
    parts: dict[str, list[Part]],
    scheme: LoadScheme | None,
    entries: dict[str, TensorEntry],
    device: torch.device,
    *,
    unwanted: Sequence[Part] = (),
) -> StoredWeights:
    """Put slots where weights are quantized, by the scheme or in the checkpoint; return what reads them."""
    if scheme is not None:
        return round_on_load(model, parts, scheme, entries, device, unwanted=unwanted)
    if model.config.quantization is not None:
        return read_as_stored(model, parts, model.config.quantization, entries, device, unwanted=unwanted)
    return StoredWeights({}, set())


def _passed_over(model: Decoder, model_config: ModelConfig) -> Callable[[str], bool]:
    """Return whether a tensor of the checkpoint, by its name, may be there without being read."""
    is_quantized = model_config.quantization is not None
    return lambda name: model.is_redundant(name) or (is_quantized and is_unread(name))


def _scheme(config: EngineConfig, model_config: ModelConfig) -> LoadScheme | None:
    """Return what to round weights to.

    Raises:
        ModelError: they are quantized already; MXFP4 may become another format, since it is read as plain weights.
    """
    if not config.quantization:
        return None
    if model_config.quantization is not None and model_config.quantization.method != MXFP4:
        raise ModelError(
            f"quantization {config.quantization!r} is for plain checkpoints; {config.model} is quantized by "
            f"{model_config.quantization.method} already"
        )
    return LoadScheme.parse(config.quantization)

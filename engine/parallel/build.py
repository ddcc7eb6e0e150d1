"""One rank's part of a model, with memory for it and no more.

Knows the order of the passes. Does not know files: what it returns says what to load.
"""

import torch

from engine.layers.checkpoint import Views
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder
from engine.models.registry import lay_out
from engine.parallel.member import Member
from engine.parallel.shard import shard


def build_part(config: ModelConfig, num_positions: int, device: torch.device, member: Member) -> tuple[Decoder, Views]:
    """Return the rank's part with undefined weights, and which pieces of the checkpoint go where.

    Once they are loaded, `engine.parallel.connect` makes it compute what the whole model would.
    """
    model = lay_out(config, device)
    cuts = shard(model, member.place, member.placements)
    model.materialize(device, num_positions).eval()
    return model, cuts.pieces()

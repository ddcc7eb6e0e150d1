"""Which expert group holds which experts of a layer, and who computes which token for an expert held twice.

Knows numbers of experts and how much they are used. Does not know layers, tensors or ranks within a group.

Invariants:
1. Every expert is held by at least one group and by no group twice; a group's experts are in ascending order.
2. Groups hold at most ceil((experts + replicas) / groups) experts, and at least one.

Source of replicas for hot experts: DeepSeek-V3 (arXiv 2412.19437), section 3.4.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import EngineConfig
from engine.errors import ModelError
from engine.models.config import ModelConfig
from engine.parallel.shares import even_share


@dataclass(slots=True, frozen=True)
class ExpertPlacement:
    """The experts of one layer by group."""

    groups: tuple[tuple[int, ...], ...]

    def holders(self, expert: int) -> list[int]:
        """Return the groups that hold the expert; token t of a step is computed by holder t modulo their number."""
        return [group for group, experts in enumerate(self.groups) if expert in experts]


def place_evenly(num_experts: int, num_groups: int) -> ExpertPlacement:
    """Give neighbouring experts to one group, each once."""
    return ExpertPlacement(tuple(tuple(even_share(num_experts, num_groups, group)) for group in range(num_groups)))


def place_by_load(loads: Sequence[float], num_groups: int, num_replicas: int) -> ExpertPlacement:
    """Balance the groups' loads, with up to `num_replicas` more copies of the experts that are used most.

    Copies go, the most used first, to the group with the least load so far; an expert's load is shared by its copies.

    Args:
        loads: how often each expert is chosen, in any unit.
        num_groups: at most as many as there are experts.
        num_replicas: copies beyond the first of each expert.
    """
    copies = _count_copies(loads, num_groups, num_replicas)
    room = -(-sum(copies) // num_groups)
    per_copy = [load / count for load, count in zip(loads, copies, strict=True)]
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    sums = [0.0] * num_groups
    for expert in sorted(range(len(loads)), key=lambda index: (-per_copy[index], index)):
        for _ in range(copies[expert]):
            free = [g for g in range(num_groups) if len(groups[g]) < room and expert not in groups[g]]
            if free:  # a further copy may find all others full; the first one never does
                group = min(free, key=lambda g: (sums[g], len(groups[g])))
                groups[group].append(expert)
                sums[group] += per_copy[expert]
    return ExpertPlacement(tuple(tuple(sorted(experts)) for experts in groups))


def placements_for(config: EngineConfig, model: ModelConfig) -> dict[int, ExpertPlacement]:
    """Return the placement of each sparse layer, by the layer's index.

    Raises:
        ModelError: the file of loads is none for this model.
    """
    if model.moe is None:
        return {}
    layers, num_experts, num_groups = sorted(model.moe.sparse_layers), model.moe.num_experts, config.expert_parallel
    if config.expert_loads is None and not config.expert_replicas:
        return dict.fromkeys(layers, place_evenly(num_experts, num_groups))
    loads = dict.fromkeys(layers, [1.0] * num_experts)
    if config.expert_loads is not None:
        loads = read_loads(config.expert_loads, model)
    return {layer: place_by_load(loads[layer], num_groups, config.expert_replicas) for layer in layers}


def read_loads(path: Path, model: ModelConfig) -> dict[int, list[float]]:
    """Read a JSON object from layers to how often each of their experts was chosen.

    Raises:
        ModelError: it cannot be read, or has other layers or experts than the model.
    """
    assert model.moe is not None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        loads = {int(layer): [float(value) for value in values] for layer, values in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"expert_loads {path} cannot be read: {error}") from None
    if set(loads) != set(model.moe.sparse_layers):
        raise ModelError(f"expert_loads {path} is for layers {sorted(loads)}, not {sorted(model.moe.sparse_layers)}")
    if any(len(values) != model.moe.num_experts or min(values) < 0 for values in loads.values()):
        raise ModelError(f"expert_loads {path} must give {model.moe.num_experts} numbers of at least 0 for each layer")
    return loads


def _count_copies(loads: Sequence[float], num_groups: int, num_replicas: int) -> list[int]:
    copies = [1] * len(loads)
    for _ in range(num_replicas):
        open_experts = [expert for expert, count in enumerate(copies) if count < num_groups]
        if not open_experts:
            break
        copies[max(open_experts, key=lambda expert: loads[expert] / copies[expert])] += 1
    return copies

"""How a request is to be served, read from its parameters and from `sampling_parameters`.

Knows which names may come from where. Does not know Triton's objects or tensors.

A gateway says for whom a request is, and may bound its class and its time, by request parameters; a client may ask for
less by `sampling_parameters`. Where both are given the stricter one holds: the lower priority, the earlier deadline.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.scheduling_params import SchedulingParams

SCHEDULING_PARAMETERS = ("tenant", "tenant_weight", "priority_class", "deadline_ms")
SCHEDULING_OPTIONS = ("priority_class", "deadline_ms", "cache_salt", "enable_prefix_cache")


def read_scheduling(parameters: Mapping[str, Any], options: Mapping[str, Any]) -> SchedulingParams:
    """Read what the request's parameters and options say of scheduling; other names in them are left alone.

    Raises:
        InvalidRequest: a value has the wrong type or lies outside its limits.
    """
    given = {name: parameters[name] for name in SCHEDULING_PARAMETERS if name in parameters}
    asked = {name: options[name] for name in SCHEDULING_OPTIONS if name in options}
    bounds, wish = SchedulingParams(**given), SchedulingParams(**asked)
    classes = [params.priority_class for params, names in ((bounds, given), (wish, asked)) if "priority_class" in names]
    deadlines = [params.deadline_ms for params in (bounds, wish) if params.deadline_ms is not None]
    return replace(
        wish,
        tenant=bounds.tenant,
        tenant_weight=bounds.tenant_weight,
        priority_class=max(classes, default=wish.priority_class),
        deadline_ms=min(deadlines, default=None),
    )

"""How long one step of a replica takes: the roofline of each part, and what ranks tell each other.

Knows a model's work, a device and a layout. Does not know requests or load.

Each part takes as long as the slower of computing and reading (Williams, Waterman and Patterson, Roofline, 2009); parts
follow each other. The slowest rank counts: where a number does not divide, the rank with one more; among expert groups,
the one that random routing gives most.
"""

import math
from dataclasses import dataclass, replace

from engine.models.config import ModelConfig
from engine.parallel.exchange_rule import prefers_exchange
from scripts.planner import collectives
from scripts.planner.devices import Device
from scripts.planner.kept import BYTES, Types
from scripts.planner.layouts import Layout, head_shares
from scripts.planner.work import Work, context_read, count_work, touched_experts

LOGIT_BYTES = 4
ID_BYTES = 4
SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step computes.

    Attributes:
        num_decodes: sequences that get one token each.
        decode_context: tokens before it, on average.
        prefill_tokens: tokens of prompts.
        prefill_context: tokens before each of these, on average.
    """

    num_decodes: float
    decode_context: float
    prefill_tokens: float = 0.0
    prefill_context: float = 0.0

    @property
    def num_tokens(self) -> float:
        """All tokens of the step."""
        return self.num_decodes + self.prefill_tokens


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of one step, by what they are spent on.

    Attributes:
        launches: what layers take whatever they compute.
        host: of the host, for this step.
        is_ahead: whether it lays out the next step meanwhile, so that only the slower of the two is seen.
    """

    dense: float
    experts: float
    attention: float
    head: float
    exchange: float
    launches: float
    host: float
    is_ahead: bool

    @property
    def seconds(self) -> float:
        """All of it."""
        computing = self.dense + self.experts + self.attention + self.head + self.exchange + self.launches
        return max(computing, self.host) if self.is_ahead else computing + self.host


class StepModel:
    """The cost of steps of one replica."""

    def __init__(self, model: ModelConfig, device: Device, layout: Layout, types: Types) -> None:
        self.model = model
        self.device = device
        self.layout = layout
        self.types = types
        self.work: Work = count_work(model)
        self._heads, self._kv_heads = head_shares(model, layout.num_ranks)
        self._link = device.link(layout.num_ranks)
        self._compute = device.compute[types.operands(device)]

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights on the rank with most of them."""
        work, layout = self.work, self.layout
        split = work.num_layers * (work.attention * self._heads + work.dense / layout.num_ranks)
        experts = work.num_sparse_layers * self._num_own_experts * work.expert / layout.tp
        types = self.types
        is_tied = not work.embedding and types.embedding_type == types.head_type
        tables = work.head * (BYTES[types.head_type] + (0 if is_tied else BYTES[types.embedding_type]))
        return (split + experts) * BYTES[types.weights] + tables / layout.num_ranks

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values of one token on the rank with most of them."""
        work = self.work
        return work.num_layers * work.kv_values * self._kv_heads * BYTES[self.types.kv_cache]

    def cost(self, load: StepLoad) -> StepCost:
        """Return what a step costs."""
        work, tokens = self.work, load.num_tokens
        dense = self._roofline(tokens, work.attention * self._heads) + self._roofline(
            tokens, work.dense / self.layout.num_ranks
        )
        return StepCost(
            dense=work.num_layers * dense,
            experts=work.num_sparse_layers * self._experts(tokens),
            attention=work.num_layers * self._attention(load),
            head=self._head(load.num_decodes + (load.prefill_tokens > 0)),
            exchange=self._exchange(load),
            launches=work.num_layers * self.device.layer_s,
            host=self.device.step_s + load.num_decodes * self.device.sequence_s,
            is_ahead=self.layout.num_ranks == 1 and not self.device.is_cpu,
        )

    @property
    def _num_own_experts(self) -> int:
        return math.ceil(self.work.num_experts / self.layout.ep)

    def _head(self, num_rows: float) -> float:
        """Return the seconds of the LM head's products."""
        num_parameters, head = self.work.head / self.layout.num_ranks, replace(self.types, weights=self.types.head_type)
        rate = self.device.compute[head.operands(self.device)]
        return self._slower(num_rows, 2.0 * num_rows * num_parameters / rate, num_parameters * BYTES[head.weights])

    def _roofline(self, num_rows: float, num_parameters: float, read: float | None = None, share: float = 1.0) -> float:
        """Return the seconds of a product that reads `read` of its parameters and reaches a share of the rate."""
        read_bytes = (num_parameters if read is None else read) * BYTES[self.types.weights]
        return self._slower(num_rows, 2.0 * num_rows * num_parameters / (self._compute * share), read_bytes)

    def _slower(self, num_rows: float, computing: float, read_bytes: float) -> float:
        """Return the seconds of computing for so many and of reading bytes, which partly hide behind each other."""
        reading = read_bytes / self.device.bandwidth
        shown = (1.0 - self.device.overlap) * min(computing, reading)
        return max(computing, reading) + shown if num_rows else 0.0

    def _experts(self, num_tokens: float) -> float:
        """Return the seconds of one layer's experts on the busiest rank."""
        work, layout = self.work, self.layout
        if not work.num_experts or not num_tokens:
            return 0.0
        own, chosen = self._num_own_experts, work.num_experts_per_token
        part = own / work.num_experts
        touched = touched_experts(num_tokens, work.num_experts, chosen)
        missed = 1.0 - touched / work.num_experts
        most_rows = busiest(num_tokens * chosen * part, 1.0 - part, layout.ep)
        most_touched = busiest(touched * part, missed, layout.ep)
        expert = work.expert / layout.tp
        rows = min(most_rows, num_tokens * min(own, chosen))
        return self._roofline(rows, expert, min(most_touched, own, touched) * expert, self.device.experts)

    def _attention(self, load: StepLoad) -> float:
        """Return the seconds of one layer's attention; a decode reads its keys for one row, a chunk for all of its."""
        decoding = load.num_decodes * context_read(load.decode_context, self.model.windows)
        chunk = context_read(load.prefill_context, self.model.windows)
        operations = 4.0 * self.model.num_heads * self._heads * self.model.head_dim
        computing = operations / self.device.attention
        value_bytes = self.work.kv_values * self._kv_heads * BYTES[self.types.kv_cache]
        reading = value_bytes / (self.device.kv_bandwidth or self.device.bandwidth)
        decode = decoding * max(computing, reading)
        return decode + max(load.prefill_tokens * chunk * computing, chunk * reading)

    def _exchange(self, load: StepLoad) -> float:
        """Return the seconds of all collectives: two for each layer, the logits of sampled rows, the ids drawn."""
        ranks, link, work = self.layout.num_ranks, self._link, self.work
        if ranks == 1:
            return 0.0
        hidden = load.num_tokens * self.model.hidden_size * BYTES[self.types.activations(self.device)]
        add_up = collectives.all_reduce(hidden, ranks, link)
        sums = (2 * work.num_layers + 1 - work.num_sparse_layers) * add_up  # one for the embedding
        experts = work.num_sparse_layers * (self._send_to_experts(hidden) if self._exchanges(load) else add_up)
        sampled = load.num_decodes + (load.prefill_tokens > 0)
        logits = collectives.all_gather(sampled * self.model.vocab_size * LOGIT_BYTES, ranks, link)
        ids = collectives.broadcast(sampled * ID_BYTES, ranks, link)
        return self.device.tell_s + sums + experts + logits + ids + self._agreeing(load.num_tokens)

    def _agreeing(self, num_tokens: float) -> float:
        """Return the seconds of agreeing on rows' scales before each sum of a layer, where CPUs round inputs."""
        if not self.device.is_cpu or self.types.weights != "int8":
            return 0.0
        one = collectives.all_reduce(num_tokens * SCALE_BYTES, self.layout.num_ranks, self._link)
        return 2 * self.work.num_layers * one

    def _exchanges(self, load: StepLoad) -> bool:
        """Whether the engine sends tokens to their experts, rather than adding up all groups' answers."""
        chosen, groups = self.work.num_experts_per_token, self.layout.ep
        return self.device.is_cpu and prefers_exchange(load.num_tokens, chosen, groups)

    def _send_to_experts(self, hidden_bytes: float) -> float:
        """Return the seconds of bringing a layer's tokens to their experts and back, and of then telling all ranks."""
        layout, link, chosen = self.layout, self._link, self.work.num_experts_per_token
        visits = hidden_bytes * touched_experts(chosen, layout.ep, 1)  # of tokens at groups that hold their experts
        there = collectives.all_to_all(visits / layout.ep, layout.ep, link)
        within = collectives.all_reduce(visits / layout.ep, layout.tp, link)
        return 2 * there + within + collectives.all_gather(hidden_bytes, layout.ep, link)


def busiest(mean: float, missed: float, num_groups: int) -> float:
    """Return about how many of random choices fall to the group that gets most, each being missed with a probability.

    The mean and sqrt(2 ln n) standard deviations: the largest of n normal values.
    """
    return mean + math.sqrt(2.0 * math.log(num_groups) * mean * missed)

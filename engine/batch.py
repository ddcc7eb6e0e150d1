"""One step's plan as tensors.

Knows tokens, positions and slots. Does not know weights, sampling or who is scheduled next.

Invariants:
1. Token t belongs to row `token_to_seq[t]` of `block_tables`, sits at `positions[t]`, is stored in `slot_mapping[t]`.
2. Tokens of one sequence are adjacent and in order; sequences come in the plan's order.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.device_link import DeviceLink
from engine.sequence import Adapter, Sequence
from engine.step_plan import ScheduledSequence, StepPlan

TENSORS = (
    *("input_ids", "positions", "rope_rows", "slot_mapping", "token_to_seq", "block_tables"),
    *("logits_indices", "pooled_indices"),
)


@dataclass(slots=True, frozen=True)
class LateTokens:
    """Input tokens that the step before gives, on the device.

    Attributes:
        places: [U] int64, which of the T tokens they are.
        rows: [U] int64, where they stand in `source`.
        source: [R] int64, on the device.
    """

    places: torch.Tensor
    rows: torch.Tensor
    source: torch.Tensor


@dataclass(slots=True)
class Batch:
    """Input of one forward pass.

    Attributes:
        input_ids: [T] int64.
        positions: [T] int32, 0-based within each sequence.
        rope_rows: [T] int32, where each token's angles are in the model's tables.
        slot_mapping: [T] int64, block id times block_size plus offset.
        token_to_seq: [T] int32.
        block_tables: [S, M] int32, padded with 0.
        logits_indices: [R] int64, the tokens whose logits are wanted.
        sampling: the sequences that get a token, in the order of the first of `logits_indices`: their last tokens.
            Behind these come all draft tokens, in the same order.
        prompts: sequences that want log-probabilities of their prompt, and for how many of this step's tokens; the rest
            of `logits_indices` are the tokens before those, in this order.
        pooling: of which items the states of how many of their last tokens are wanted.
        pooled_indices: [P] int64, these tokens, in this order.
        adapters: of each sequence, or None.
        late: input tokens that are to be filled in on the device.
        pooled: [P, C], their states behind the last norm; None until the forward pass has put them here.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    rope_rows: torch.Tensor
    slot_mapping: torch.Tensor
    token_to_seq: torch.Tensor
    block_tables: torch.Tensor
    logits_indices: torch.Tensor
    sampling: list[Sequence]
    prompts: list[tuple[Sequence, int]]
    pooling: list[tuple[ScheduledSequence, int]]
    pooled_indices: torch.Tensor
    adapters: Many[Adapter | None] = ()
    pooled: torch.Tensor | None = None
    late: LateTokens | None = None

    def moved(self, link: DeviceLink) -> "Batch":
        """Return the batch with its tensors on the device, late tokens filled in."""
        hosts = [getattr(self, name) for name in TENSORS]
        if self.late is None:
            return replace(self, **dict(zip(TENSORS, link.upload(hosts), strict=True)))
        *moved, places, rows = link.upload([*hosts, self.late.places, self.late.rows])
        batch = replace(self, **dict(zip(TENSORS, moved, strict=True)), late=None)
        batch.input_ids[places] = self.late.source[rows]
        return batch


def find_late_tokens(plan: StepPlan, before: Many[Sequence], source: torch.Tensor) -> LateTokens | None:
    """Return which tokens of the plan are not known yet.

    Args:
        plan: what is to be computed.
        before: the sequences that the step in flight samples for.
        source: the tokens that it gives them.
    """
    rows = {sequence: row for row, sequence in enumerate(before)}
    ends = np.cumsum([item.num_tokens + len(item.draft_ids) for item in plan.scheduled]).tolist()
    late = [
        (end - 1, rows[item.sequence])
        for item, end in zip(plan.scheduled, ends, strict=True)
        if item.sequence.num_expected_tokens
    ]
    if not late:
        return None
    places, where = (torch.tensor(column, dtype=torch.int64) for column in zip(*late, strict=True))
    return LateTokens(places, where, source)


def build_batch(plan: StepPlan, block_size: int) -> Batch:
    """Lay the plan out as tensors on the host."""
    counts = np.array([item.num_tokens + len(item.draft_ids) for item in plan.scheduled], dtype=np.int64)
    starts = np.array([item.sequence.num_computed_tokens for item in plan.scheduled], dtype=np.int64)
    ends = np.cumsum(counts)
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    positions = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + np.repeat(starts, counts)
    first_rows = np.array([item.sequence.first_rope_row for item in plan.scheduled], dtype=np.int64)
    tables = _block_tables([item.sequence for item in plan.scheduled])
    slots = tables[rows, positions // block_size].astype(np.int64) * block_size + positions % block_size
    samples = [index for index, item in enumerate(plan.scheduled) if item.samples]
    num_drafts = np.array([len(plan.scheduled[index].draft_ids) for index in samples], dtype=np.int64)
    last = ends[samples] - 1 - num_drafts
    drafts = [end + np.arange(1, count + 1) for end, count in zip(last, num_drafts, strict=True) if count]
    logged = _prompt_tokens(plan, ends - counts)
    pooling = _pooling(plan)
    pooled = [end - count + np.arange(count) for end, count in zip(ends, pooling, strict=True) if count]
    return Batch(
        input_ids=torch.from_numpy(_token_ids(plan)),
        positions=torch.from_numpy(positions.astype(np.int32)),
        rope_rows=torch.from_numpy((positions + np.repeat(first_rows, counts)).astype(np.int32)),
        slot_mapping=torch.from_numpy(slots),
        token_to_seq=torch.from_numpy(rows),
        block_tables=torch.from_numpy(tables),
        logits_indices=torch.from_numpy(np.concatenate((last, *drafts, *(tokens for _, tokens in logged)))),
        sampling=[plan.scheduled[index].sequence for index in samples],
        prompts=[(sequence, len(tokens)) for sequence, tokens in logged],
        pooling=[(item, count) for item, count in zip(plan.scheduled, pooling, strict=True) if count],
        pooled_indices=torch.from_numpy(np.concatenate((np.empty(0, dtype=np.int64), *pooled))),
        adapters=[item.sequence.adapter for item in plan.scheduled],
    )


def _prompt_tokens(plan: StepPlan, starts: np.ndarray) -> list[tuple[Sequence, np.ndarray]]:
    """Return, for each sequence that wants it, the step's tokens whose logits say how likely a prompt token was."""
    found: list[tuple[Sequence, np.ndarray]] = []
    for item, start in zip(plan.scheduled, starts, strict=True):
        sequence = item.sequence
        if sequence.wants_prompt_log_probs:
            offset = start - sequence.num_computed_tokens
            first = max(sequence.num_computed_tokens, len(sequence.prompt_log_probs))
            last = min(sequence.num_computed_tokens + item.num_tokens, sequence.num_prompt_tokens - 1)
            found.append((sequence, offset + np.arange(first, max(first, last), dtype=np.int64)))
    return found


def _pooling(plan: StepPlan) -> list[int]:
    """Return of how many last tokens of each item the states are wanted."""
    counts: list[int] = []
    for item in plan.scheduled:
        sequence, first = item.sequence, item.sequence.num_computed_tokens
        end = first + item.num_tokens
        pooler = sequence.pooler
        counts.append(0 if pooler is None else end - pooler.first_wanted(first, end, sequence.num_tokens))
    return counts


def _token_ids(plan: StepPlan) -> np.ndarray:
    ids: list[int] = []
    for item in plan.scheduled:
        start = item.sequence.num_computed_tokens
        ids.extend(item.sequence.token_ids[start : start + item.num_tokens])
        ids.extend(item.draft_ids)
    return np.array(ids, dtype=np.int64)


def _block_tables(sequences: list[Sequence]) -> np.ndarray:
    width = max(len(sequence.block_table) for sequence in sequences)
    tables = np.zeros((len(sequences), width), dtype=np.int32)
    for row, sequence in enumerate(sequences):
        tables[row, : len(sequence.block_table)] = sequence.block_table
    return tables

"""Which sequences compute how many tokens in the next step.

Knows sequences, blocks and budgets. Does not know tensors, sampling, text or time.

One rule, no phases: every running sequence has tokens still to compute, one in its decode state and more in prefill; a
step spends a token budget on them, decodes first, then running prefills, then new admissions. Where blocks run out the
youngest sequence that is not yet in the step gives its blocks back and is computed again later (max-utilization).

Invariants, checked by `check`:
1. A step holds at most `max_num_batched_tokens` tokens of at most `max_num_seqs` sequences.
2. Waiting sequences hold no blocks; running ones hold the blocks of all their computed tokens.
3. A sequence is waiting, running or finished, never two of these, and finishes once.
"""

from collections import deque
from dataclasses import dataclass, field

from engine.errors import QueueFull
from engine.kv_manager import KVManager
from engine.outputs import FinishReason
from engine.sequence import Sequence, SequenceStatus


@dataclass(slots=True)
class ScheduledSequence:
    """A sequence and how many of its tokens the step computes, from `num_computed_tokens` on."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's last token, so that its logits give the next one."""
        return self.num_tokens == self.sequence.num_uncomputed_tokens


@dataclass(slots=True)
class StepPlan:
    """What one step computes."""

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Put `num_tokens` tokens of the sequence into the step."""
        self.scheduled.append(ScheduledSequence(sequence, num_tokens))
        self.num_tokens += num_tokens


class Scheduler:
    """Keeps the waiting queue and the running set, and plans steps over them."""

    def __init__(self, kv: KVManager, max_num_seqs: int, max_num_batched_tokens: int, max_waiting: int) -> None:
        """Start idle."""
        self.kv = kv
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_waiting = max_waiting
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence.

        Raises:
            QueueFull: `max_waiting` requests wait already.
        """
        if len(self.waiting) >= self.max_waiting:
            raise QueueFull(len(self.waiting), self.max_waiting)
        self.waiting.append(sequence)

    def schedule(self) -> StepPlan:
        """Plan the next step; blocks for all its tokens are reserved when this returns."""
        plan = StepPlan()
        decodes = [s for s in self.running if s.num_uncomputed_tokens == 1]
        prefills = [s for s in self.running if s.num_uncomputed_tokens > 1]
        preempted_before = self.num_preemptions
        for sequence in decodes + prefills:
            if plan.num_tokens == self.max_num_batched_tokens:
                break
            if sequence.status is SequenceStatus.RUNNING:
                self._continue(sequence, plan)
        if self.num_preemptions == preempted_before:
            self._admit(plan)
        return plan

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a waiting or running sequence and take its blocks back; a finished one stays as it is."""
        if sequence.is_finished:
            return
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self.kv.release(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def check(self) -> None:
        """Assert the invariants of this module, of the block tables and of the pool."""
        self.kv.pool.check()
        assert len(self.running) <= self.max_num_seqs
        assert all(s.status is SequenceStatus.WAITING and not s.block_table for s in self.waiting)
        assert all(s.status is SequenceStatus.RUNNING for s in self.running)
        holders: dict[int, int] = {}
        for sequence in self.running:
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.kv.block_size
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            for block in sequence.block_table:
                holders[block] = holders.get(block, 0) + 1
        assert all(self.kv.pool.ref_counts[block] == count for block, count in holders.items())
        assert self.kv.pool.num_used == len(holders)
        assert all(count == 1 or self.kv.pool.is_full(block) for block, count in holders.items())

    def _continue(self, sequence: Sequence, plan: StepPlan) -> None:
        num_tokens = min(sequence.num_uncomputed_tokens, self.max_num_batched_tokens - plan.num_tokens)
        while not self.kv.reserve(sequence, sequence.num_computed_tokens + num_tokens):
            victim = self._youngest_unscheduled(plan)
            self._preempt(victim)
            if victim is sequence:
                return
        plan.add(sequence, num_tokens)

    def _youngest_unscheduled(self, plan: StepPlan) -> Sequence:
        scheduled = {id(item.sequence) for item in plan.scheduled}
        return next(s for s in reversed(self.running) if id(s) not in scheduled)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.kv.release(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _admit(self, plan: StepPlan) -> None:
        while self.waiting and plan.num_tokens < self.max_num_batched_tokens and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self.kv.admit(sequence):
                return
            self.waiting.popleft()
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
            budget = self.max_num_batched_tokens - plan.num_tokens
            plan.add(sequence, min(sequence.num_uncomputed_tokens, budget))

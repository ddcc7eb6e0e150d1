"""Which sequences compute how many tokens in the next step.

Knows sequences, blocks and budgets. Does not know tensors, sampling, text or clocks: the time is handed in.

One rule, no phases: every running sequence has tokens still to compute, one in its decode state and more in prefill; a
step spends a token budget on them, decodes first, then running prefills, then new admissions, in each by rank
(`engine.ageing`). Who is admitted next is up to `WaitingQueue`, whether there is room for it and who gives way where
blocks run out to the `CapacityPolicy`. A head of the queue that does not fit holds up the others, so that it is not
passed by for ever.

Invariants, checked by `check`:
1. A step holds at most `max_num_batched_tokens` tokens of at most `max_num_seqs` sequences.
2. Waiting sequences hold no blocks; running ones hold the blocks of all their computed tokens that are still read.
3. A sequence is waiting, running or finished, never two of these, and finishes once.
4. A sequence is preempted only for one of lower rank, so that the first in rank always goes on and everyone ends. One
   that lacks a block and has nobody behind it that could give way pauses, and nobody is admitted in that step.
"""

from dataclasses import dataclass
from itertools import count, takewhile

from engine.ageing import Ageing
from engine.block_pool import BlockPool
from engine.capacity_policy import POLICIES, CapacityPolicy
from engine.config import EngineConfig
from engine.deadlines import Deadlines
from engine.kv_manager import KVManager
from engine.ordered_sequences import OrderedSequences
from engine.outputs import FinishReason
from engine.sequence import Sequence, SequenceStatus
from engine.step_plan import StepPlan
from engine.tenant_shares import OUTPUT_TOKEN_COST, PROMPT_TOKEN_COST, TenantShares
from engine.waiting_queue import WaitingQueue, by_rank


@dataclass(slots=True, frozen=True)
class Refusal:
    """Why looking again would be in vain: no block was released since, and the prefix that is cached has not grown."""

    sequence: Sequence
    num_releases: int
    missed_name: bytes | None

    def still_holds(self, sequence: Sequence, pool: BlockPool) -> bool:
        """Whether the sequence is the one that was refused, and nothing has changed for it."""
        if sequence is not self.sequence or pool.num_releases != self.num_releases:
            return False
        return self.missed_name is None or pool.find(self.missed_name) is None


class Scheduler:
    """Keeps the waiting queue and the running set, and plans steps over them."""

    def __init__(self, kv: KVManager, config: EngineConfig) -> None:
        """Start idle."""
        self.kv = kv
        self.max_num_seqs = config.max_num_seqs
        self.max_num_batched_tokens = config.max_num_batched_tokens
        self.policy: CapacityPolicy = POLICIES[config.scheduler_policy]()
        self.ageing = Ageing(config.ageing_seconds)
        self.shares = TenantShares()
        self.waiting = WaitingQueue(self.shares, config.max_waiting, config.max_waiting_tokens)
        self.running = OrderedSequences(by_rank)
        self.deadlines = Deadlines()
        self.num_preemptions = 0
        self._tickets = count()
        self._refusal: Refusal | None = None

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence, whose arrival time has been noted.

        Raises:
            QueueFull: too many requests, or tokens, wait already.
        """
        self.waiting.check_room(sequence.num_tokens)
        self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        scheduling = sequence.scheduling
        rank = self.ageing.rank(sequence.timings.arrived, scheduling.priority_class)
        sequence.rank = (rank, next(self._tickets))
        self.shares.join(scheduling.tenant, scheduling.tenant_weight)
        self.waiting.add(sequence)
        self.deadlines.add(sequence)

    def fork(self, siblings: list[Sequence]) -> None:
        """Queue more sequences of a request that was accepted, whatever waits: its prompt's blocks are at hand."""
        for sibling in siblings:
            self._queue(sibling)

    def schedule(self, now: float) -> StepPlan:
        """End what is past its deadline and plan the next step; blocks for all its tokens are reserved then.

        Args:
            now: the present time, of the clock that arrivals and deadlines are of.
        """
        plan = StepPlan(expired=self.deadlines.expired(now))
        for sequence in plan.expired:
            self.finish(sequence, FinishReason.DEADLINE)
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        for sequence in self.running:
            if sequence.is_full:
                continue
            (decodes if sequence.num_uncomputed_tokens == 1 else prefills).append(sequence)
        has_room = True
        for sequence in decodes + prefills:
            if plan.num_tokens == self.max_num_batched_tokens:
                break
            if sequence.status is SequenceStatus.RUNNING:
                has_room &= self._continue(sequence, plan)
        if has_room:
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
        self.deadlines.remove(sequence)
        self.shares.leave(sequence.scheduling.tenant)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        sequence.expect_nothing()

    def accept(self, sequence: Sequence) -> None:
        """Book the last token of a sequence, which was a draft token of this step, as computed already."""
        sequence.num_computed_tokens += 1
        self.kv.register(sequence)
        self.shares.charge(sequence.scheduling.tenant, OUTPUT_TOKEN_COST)

    def check(self) -> None:
        """Assert the invariants of this module, of the block tables and of the pool."""
        waiting, running = list(self.waiting), list(self.running)
        assert len(running) <= self.max_num_seqs
        assert all(s.status is SequenceStatus.WAITING and not s.block_table for s in waiting)
        assert all(s.status is SequenceStatus.RUNNING for s in running)
        assert running == sorted(running, key=by_rank)
        assert self.waiting.num_tokens == sum(s.num_tokens for s in waiting)
        assert len(self.deadlines) == sum(s.deadline is not None for s in waiting + running)
        assert self.shares.num_active == len({s.scheduling.tenant for s in waiting + running})
        self.kv.check(running)

    def _continue(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Plan more tokens of a running sequence; return whether there were blocks enough without anyone's."""
        had_room = True
        while not self.kv.reserve(sequence, sequence.num_tokens):
            had_room = False
            victim = self.policy.victim(self._unscheduled_behind(sequence, plan))
            if victim is None:
                return False
            self._preempt(victim)
        self._plan(sequence, plan)
        return had_room

    def _plan(self, sequence: Sequence, plan: StepPlan) -> None:
        budget = self.max_num_batched_tokens - plan.num_tokens
        if plan.add(sequence, min(sequence.num_uncomputed_tokens, budget)).samples:
            self.shares.charge(sequence.scheduling.tenant, OUTPUT_TOKEN_COST)

    def _unscheduled_behind(self, sequence: Sequence, plan: StepPlan) -> list[Sequence]:
        """Return the running sequences of higher rank that are not in the step, last first."""
        scheduled = {item.sequence.rank for item in plan.scheduled}
        behind = takewhile(lambda s: s.rank > sequence.rank, reversed(self.running))
        return [s for s in behind if s.rank not in scheduled]

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.kv.release(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.add(sequence)

    def _admit(self, plan: StepPlan) -> None:
        while self.waiting and plan.num_tokens < self.max_num_batched_tokens and len(self.running) < self.max_num_seqs:
            sequence = self.waiting.head()
            if not self._take_blocks(sequence):
                return
            self.waiting.remove(sequence)
            sequence.status = SequenceStatus.RUNNING
            self.running.add(sequence)
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = sequence.num_computed_tokens
                self.shares.charge(sequence.scheduling.tenant, PROMPT_TOKEN_COST * sequence.num_uncomputed_tokens)
            self._plan(sequence, plan)

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Give a waiting sequence what it needs to start; False, with nothing changed, where there is no room.

        One that was refused is looked at again only when its chances have changed: looking up a long prefix costs.
        """
        if self.running and self._refusal is not None and self._refusal.still_holds(sequence, self.kv.pool):
            return False
        self.kv.take_prefix(sequence)
        needed = self.kv.num_missing_blocks(sequence, sequence.num_tokens)
        if self.policy.admits(needed, self.kv.pool.num_available, lambda: self._num_outstanding(sequence)):
            return self.kv.reserve(sequence, sequence.num_tokens)
        missed = self.kv.first_missed_name(sequence)
        self.kv.release(sequence)
        self._refusal = Refusal(sequence, self.kv.pool.num_releases, missed)
        return False

    def _num_outstanding(self, newcomer: Sequence) -> int:
        return sum(map(self.kv.num_outstanding_blocks, (newcomer, *self.running)))

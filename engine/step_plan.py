"""What one step computes: sequences and how many tokens of each.

Knows sequences. Does not know why they were chosen, or how they are computed.
"""

from dataclasses import dataclass, field

from engine.sequence import Sequence


@dataclass(slots=True)
class ScheduledSequence:
    """A sequence and how many of its tokens the step computes, from `num_computed_tokens` on.

    Attributes:
        draft_ids: guesses at the tokens that come next; they are computed as well. Only where the step `samples`.
    """

    sequence: Sequence
    num_tokens: int
    draft_ids: list[int] = field(default_factory=list)

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's last token, and its logits are to give the next one."""
        return self.num_tokens == self.sequence.num_uncomputed_tokens and self.sequence.pooler is None


@dataclass(slots=True)
class StepPlan:
    """What one step computes, and which sequences ended while it was made because their deadline had passed.

    `num_tokens` counts draft tokens as well.
    """

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    num_tokens: int = 0
    expired: list[Sequence] = field(default_factory=list)

    def add(self, sequence: Sequence, num_tokens: int) -> ScheduledSequence:
        """Put `num_tokens` tokens of the sequence into the step."""
        item = ScheduledSequence(sequence, num_tokens)
        self.scheduled.append(item)
        self.num_tokens += num_tokens
        return item

    def draft(self, item: ScheduledSequence, draft_ids: list[int]) -> None:
        """Compute guesses behind the last token of one of the step's sequences as well."""
        item.draft_ids = draft_ids
        self.num_tokens += len(draft_ids)

    def drop_finished(self) -> None:
        """Leave out sequences that have ended since the plan was made."""
        self.scheduled = [item for item in self.scheduled if not item.sequence.is_finished]
        self.num_tokens = sum(item.num_tokens + len(item.draft_ids) for item in self.scheduled)

    def halves(self) -> list["StepPlan"]:
        """Return two steps that compute this one's sequences."""
        middle = len(self.scheduled) // 2
        parts = self.scheduled[:middle], self.scheduled[middle:]
        return [StepPlan(part, sum(item.num_tokens + len(item.draft_ids) for item in part)) for part in parts]

"""What the results of a step do to its sequences: tokens, states and ends.

Knows sequences, their requests' groups, statistics and the clock. Does not know which step comes next, or how one is
computed.

Invariant: every sequence gets exactly one output with a finish reason, whatever goes wrong with its token.
"""

import logging
import time
from dataclasses import dataclass, field, replace
from itertools import compress

from engine.errors import EngineError, RequestFailed, grpc_code
from engine.outputs import EngineStats, FinishReason, RequestOutput
from engine.pooling import Pooler
from engine.sampler import SampledTokens
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.sequence_groups import SequenceGroups
from engine.sequence_output import stop_token_chars, take_output
from engine.step_plan import ScheduledSequence, StepPlan
from engine.step_run import StepRun
from engine.stopping import append_token
from engine.text.tokenizer import Tokenizer
from engine.top_tokens import TopTokens

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Results:
    """Gives sequences what a step has made, and ends them.

    Attributes:
        scheduler: told of what has been computed and of who has ended.
        stats: counted into.
        tokenizer: says what a stop token has a part in.
        groups: which sequences belong to one request.
    """

    scheduler: Scheduler
    stats: EngineStats
    tokenizer: Tokenizer
    groups: SequenceGroups = field(default_factory=SequenceGroups)

    def account(self, plan: StepPlan) -> None:
        """Book the step's tokens as computed and name the blocks they filled."""
        for item in plan.scheduled:
            sequence = item.sequence
            if sequence.is_finished:
                continue
            missing = sequence.num_prompt_tokens - sequence.num_computed_tokens
            if 0 < missing <= item.num_tokens and not sequence.timings.first_token and sequence.index == 0:
                self.stats.num_prompt_tokens += sequence.num_prompt_tokens
                self.stats.num_cached_tokens += min(sequence.num_cached_tokens, sequence.num_prompt_tokens)
            sequence.num_computed_tokens += item.num_tokens
            self.scheduler.kv.register(sequence)

    def take_tokens(self, run: StepRun) -> list[RequestOutput]:
        """Give each sequence its token, and those behind it as long as they are its draft; return what was gained."""
        outputs: list[RequestOutput] = []
        pending, sampled, number = list(range(len(run.items))), run.sampled, 0
        while pending:
            given = [(run.items[index], row) for row, index in enumerate(pending)]
            outputs += [output for item, row in given if (output := self._take_token(item.sequence, sampled, row))]
            right = [self._accept(item, number, sampled.token_ids[row]) for item, row in given]
            pending, number = list(compress(pending, right)), number + 1
            sampled = run.sample_behind(pending, number) if pending else sampled
        going_on = (item.sequence for item in run.items if not item.sequence.is_finished)
        return outputs + [
            take_output(sequence, len(self.groups.of(sequence.request_id)))
            for sequence in going_on
            if sequence.num_releasable > sequence.num_emitted
        ]

    def _accept(self, item: ScheduledSequence, number: int, token_id: int) -> bool:
        """Whether the token that a sequence has just got is its draft token `number`, from 0: computed already."""
        if item.sequence.is_finished or item.draft_ids[number : number + 1] != [token_id]:
            return False
        self.scheduler.accept(item.sequence)
        item.sequence.num_accepted_tokens += 1
        self.stats.num_accepted_draft_tokens += 1
        return True

    def take_states(self, run: StepRun) -> list[RequestOutput]:
        """Pool the step's hidden states, and return the last outputs of texts that are complete."""
        outputs: list[RequestOutput] = []
        for item, states in run.states:
            sequence = item.sequence
            assert sequence.pooler is not None
            sequence.pooler.take(states, sequence.num_computed_tokens - len(states))
            if sequence.num_uncomputed_tokens == 0:
                outputs.append(self._end_embedding(sequence, sequence.pooler))
        return outputs

    def _end_embedding(self, sequence: Sequence, pooler: Pooler) -> RequestOutput:
        try:
            embedding = pooler.result()
        except EngineError as error:
            return self.fail(sequence, error)
        return replace(self.finish(sequence, FinishReason.STOP), embedding=embedding)

    def _take_token(self, sequence: Sequence, sampled: SampledTokens, row: int) -> RequestOutput | None:
        """Give a sequence its token and return its last output if it ends; what goes wrong ends its request only."""
        if sequence.is_finished:  # another sequence of its request has failed in this step
            return None
        try:
            error = sampled.errors[row]
            if error is None:
                return self._advance(sequence, sampled, row)
        except EngineError as failure:
            error = failure
        except Exception as bug:
            logger.exception("request %d failed", sequence.request_id)
            error = RequestFailed(f"the request failed inside the engine: {bug!r}")
        return self.fail(sequence, error)

    def _advance(self, sequence: Sequence, sampled: SampledTokens, row: int) -> RequestOutput | None:
        token_id, log_prob = sampled.token_ids[row], sampled.log_probs[row]
        if log_prob is not None:
            sequence.log_probs.append(log_prob)
            sequence.top_tokens.extend(sampled.tops[row] or TopTokens())
        reason = append_token(sequence, token_id)
        self.stats.num_generated_tokens += 1
        self._fork(sequence)
        if not sequence.timings.first_token:
            sequence.timings.first_token = time.monotonic()
        if reason is FinishReason.STOP and token_id in sequence.params.stop_token_ids:
            sequence.trim_chars = stop_token_chars(self.tokenizer, sequence)
        return None if reason is None else self.finish(sequence, reason)

    def end_expired(self, sequence: Sequence) -> RequestOutput:
        """Report a sequence that the scheduler has ended at its deadline, with every token it has."""
        sequence.num_releasable = sequence.num_output_tokens
        output = self.finish(sequence, FinishReason.DEADLINE)
        self.stats.num_expired += output.ends_request
        return output

    def finish(self, sequence: Sequence, reason: FinishReason) -> RequestOutput:
        """End a sequence and return its last output."""
        self._fork(sequence)
        self.scheduler.finish(sequence, reason)
        sequence.timings.finished = time.monotonic()
        num_open = self.groups.close(sequence)
        self.stats.num_finished += num_open == 0
        return take_output(sequence, num_open)

    def cut_off(self, sequence: Sequence, reason: FinishReason) -> RequestOutput:
        """End a sequence without what it has not sent on."""
        sequence.num_releasable = sequence.num_emitted
        return self.finish(sequence, reason)

    def fail(self, sequence: Sequence, error: EngineError) -> RequestOutput:
        """End a request, whose sequences share its one error."""
        outputs = [self.cut_off(each, FinishReason.ERROR) for each in self.groups.of(sequence.request_id)]
        return replace(outputs[-1], error=str(error), error_code=grpc_code(error))

    def _fork(self, first: Sequence) -> None:
        """Queue the request's other sequences, which were held until the first had computed the prompt."""
        siblings = self.groups.take_held(first.request_id)
        for sibling in siblings:
            sibling.prompt_log_probs, sibling.prompt_top = first.prompt_log_probs, first.prompt_top
        self.scheduler.fork(siblings)

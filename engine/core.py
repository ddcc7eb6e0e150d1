"""The engine's step loop body: requests in, outputs out, one step at a time.

Knows scheduler, runner and tokenizer, and the clock. Does not know processes, Triton or threads: all of it happens on
the caller's thread.

Invariants:
1. Every request that `add` accepts gets exactly one output with a finish reason.
2. Between steps `scheduler.check()` holds.
"""

import logging
import time
from dataclasses import replace
from itertools import compress

from engine.config import EngineConfig
from engine.draft_model import DraftModel
from engine.errors import EngineError, InvalidRequest, RequestFailed, grpc_code
from engine.guides import GuideFactory
from engine.isolation import run_isolated
from engine.kv_manager import make_kv_manager
from engine.messages import ModelInfo
from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.ngram_lookup import NgramLookup
from engine.outputs import EngineStats, FinishReason, RequestOutput
from engine.parallel.leader import RankLeader
from engine.pooling import Pooler
from engine.request_check import check_request
from engine.sampler import SampledTokens
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from engine.sequence import Adapter, Guide, Sequence
from engine.sequence_factory import SequenceFactory
from engine.sequence_groups import SequenceGroups
from engine.sequence_output import stop_token_chars, take_output
from engine.speculation import Proposer, Speculation
from engine.step_plan import ScheduledSequence, StepPlan
from engine.step_run import StepRun
from engine.stopping import append_token, resume
from engine.task_params import DEFAULT_TASK, TaskParams
from engine.text.tokenizer import Tokenizer
from engine.top_tokens import TopTokens

logger = logging.getLogger(__name__)


class EngineCore:
    """One model with its scheduler."""

    def __init__(self, config: EngineConfig) -> None:
        """Load everything.

        Raises:
            ModelError: the model folder or the configuration cannot be served.
        """
        self.model_config = ModelConfig.from_dir(config.model)
        config.parallel.check(self.model_config)
        self.tokenizer = Tokenizer.from_dir(config.model)
        self.ranks = RankLeader(config, self.model_config) if config.parallel.num_ranks > 1 else None
        try:
            self.runner = self._load(config)
        except BaseException:
            self.close()
            raise
        window = self.model_config.sliding_window
        self.scheduler = Scheduler(make_kv_manager(config, self.runner.num_blocks, window), config)
        proposers: dict[str, Proposer] = {"ngram": NgramLookup()}
        if config.draft_model is not None:
            proposers["draft"] = DraftModel(config, self.model_config.vocab_size, self.tokenizer)
        self.has_draft_model = config.draft_model is not None
        self.speculation = Speculation(config, self.scheduler.kv, proposers)
        self.stats = EngineStats(num_blocks=self.runner.num_blocks, block_size=config.block_size)
        self.guides = GuideFactory(self.tokenizer)
        self.sequences = SequenceFactory(self.model_config, self.tokenizer, self.runner.max_model_len)
        self._groups = SequenceGroups()

    def close(self) -> None:
        """End the model's other ranks, if there are any."""
        if self.ranks is not None:
            self.ranks.close()

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return ModelInfo(
            vocab_size=self.model_config.vocab_size,
            max_model_len=self.runner.max_model_len,
            block_size=self.runner.block_size,
            num_blocks=self.runner.num_blocks,
            eos_token_ids=self.model_config.eos_token_ids,
            has_draft_model=self.has_draft_model,
        )

    @property
    def has_work(self) -> bool:
        """Whether a call of `step` would compute anything."""
        return self.scheduler.has_work

    def add(
        self,
        request_id: int,
        prompt_ids: list[int],
        params: SamplingParams,
        arrived: float,
        resume_ids: tuple[int, ...] = (),
        *,
        scheduling: SchedulingParams = DEFAULT_SCHEDULING,
        guide: Guide | None = None,
        task: TaskParams = DEFAULT_TASK,
        adapter: Adapter | None = None,
    ) -> list[RequestOutput]:
        """Queue a request, to go on behind `resume_ids` where the completion has begun elsewhere.

        `guide` spares compiling it here; see `guides`. `adapter` is the one that `task` names, loaded for the runner's
        `adapter_targets`.

        Returns:
            The one and last output where the resumed completion is over already, else none.

        Raises:
            InvalidRequest: the prompt is empty, has ids outside the vocabulary, or is too long; or a bad guide.
            QueueFull: too many requests, or tokens, wait.
        """
        check_request(prompt_ids, params, self.info, resume_ids, task)
        if params.guided is not None and guide is None:
            guide = self.guides.make(params.guided)
        sequences = self.sequences.make(
            request_id, prompt_ids, params, arrived, scheduling=scheduling, task=task, guide=guide, adapter=adapter
        )
        try:
            reason = resume(sequences[0], resume_ids)
        except RequestFailed as error:
            raise InvalidRequest(f"resume_token_ids cannot be followed: {error}") from error
        self.scheduler.add(sequences[0])
        self._groups.add(sequences)
        return [] if reason is None else [self._finish(sequences[0], reason)]

    def abort(self, request_id: int) -> list[RequestOutput]:
        """End a request now and return its sequences' last outputs; none where it has ended already."""
        return [self._cut_off(sequence, FinishReason.CANCELLED) for sequence in self._groups.of(request_id)]

    def step(self) -> list[RequestOutput]:
        """Plan and compute one step, and return what requests gained by it."""
        started = time.monotonic()
        plan = self.scheduler.schedule(started)
        outputs = [self._end_expired(sequence) for sequence in plan.expired]
        if not plan.scheduled:
            return outputs
        for item in plan.scheduled:
            item.sequence.timings.scheduled = item.sequence.timings.scheduled or started
        self.stats.num_draft_tokens += self.speculation.extend(plan)
        runs, failures = run_isolated(self.runner.run, plan)
        outputs += [self._fail(sequence, error) for sequence, error in failures if not sequence.is_finished]
        self._account(plan)
        outputs += [output for run in runs for output in self._take_tokens(run) + self._take_states(run)]
        self.stats.num_steps += 1
        self.stats.last_step_seconds = time.monotonic() - started
        return outputs

    def read_stats(self) -> EngineStats:
        """Return the statistics, brought up to date."""
        self.stats.num_waiting = len(self.scheduler.waiting)
        self.stats.num_waiting_tokens = self.scheduler.waiting.num_tokens
        self.stats.num_running = len(self.scheduler.running)
        self.stats.kv_usage = self.scheduler.kv.usage
        self.stats.num_preemptions = self.scheduler.num_preemptions
        return self.stats

    def _load(self, config: EngineConfig) -> ModelRunner:
        if self.ranks is None:
            runner = ModelRunner(config, self.model_config)
        else:
            runner = ModelRunner(self.ranks.config, self.model_config, self.ranks.member)
            self.ranks.wait_until_loaded()
        runner.warm_up()
        return runner

    def _account(self, plan: StepPlan) -> None:
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

    def _take_tokens(self, run: StepRun) -> list[RequestOutput]:
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
            take_output(sequence, len(self._groups.of(sequence.request_id)))
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

    def _take_states(self, run: StepRun) -> list[RequestOutput]:
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
            return self._fail(sequence, error)
        return replace(self._finish(sequence, FinishReason.STOP), embedding=embedding)

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
        return self._fail(sequence, error)

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
        return None if reason is None else self._finish(sequence, reason)

    def _end_expired(self, sequence: Sequence) -> RequestOutput:
        """Report a sequence that the scheduler has ended at its deadline, with every token it has."""
        sequence.num_releasable = sequence.num_output_tokens
        output = self._finish(sequence, FinishReason.DEADLINE)
        self.stats.num_expired += output.ends_request
        return output

    def _finish(self, sequence: Sequence, reason: FinishReason) -> RequestOutput:
        self._fork(sequence)
        self.scheduler.finish(sequence, reason)
        sequence.timings.finished = time.monotonic()
        num_open = self._groups.close(sequence)
        self.stats.num_finished += num_open == 0
        return take_output(sequence, num_open)

    def _cut_off(self, sequence: Sequence, reason: FinishReason) -> RequestOutput:
        """End a sequence without what it has not sent on."""
        sequence.num_releasable = sequence.num_emitted
        return self._finish(sequence, reason)

    def _fail(self, sequence: Sequence, error: EngineError) -> RequestOutput:
        """End a request, whose sequences share its one error."""
        outputs = [self._cut_off(each, FinishReason.ERROR) for each in self._groups.of(sequence.request_id)]
        return replace(outputs[-1], error=str(error), error_code=grpc_code(error))

    def _fork(self, first: Sequence) -> None:
        """Queue the request's other sequences, which were held until the first had computed the prompt."""
        siblings = self._groups.take_held(first.request_id)
        for sibling in siblings:
            sibling.prompt_log_probs, sibling.prompt_top = first.prompt_log_probs, first.prompt_top
        self.scheduler.fork(siblings)

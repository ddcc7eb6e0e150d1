"""The engine's step loop body: requests in, outputs out, one step at a time.

Knows scheduler, runner and tokenizer, and the clock. Does not know processes, Triton or threads: all of it happens on
the caller's thread.

Invariants:
1. Every request that `add` accepts gets exactly one output with a finish reason.
2. Between steps `scheduler.check()` holds.
3. With `overlap` a step is laid out and begun while the one before it is computed, as if each of its sequences went on;
   whoever turns out to have ended is passed over when the tokens arrive. Steps that must know the tokens wait for them.
"""

import logging
import time
from collections.abc import Callable, Collection
from functools import partial

from engine.compile_watch import CompileWatch
from engine.config import EngineConfig
from engine.draft_model import DraftModel
from engine.errors import EngineError, InvalidRequest, RequestFailed
from engine.guides import GuideFactory
from engine.isolation import run_isolated
from engine.kv_manager import make_kv_manager
from engine.lora.lora_linear import LoadedAdapter
from engine.messages import ModelInfo
from engine.model_loading import Loader, load_model
from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.ngram_lookup import NgramLookup
from engine.outputs import EngineStats, FinishReason, RequestOutput
from engine.parallel.leader import RankLeader
from engine.parallel.step_message import AdapterName
from engine.request_check import check_request
from engine.results import Results
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from engine.sequence import Adapter, Guide, Sequence
from engine.sequence_factory import SequenceFactory
from engine.speculation import Proposer, Speculation
from engine.step_plan import StepPlan
from engine.step_run import PendingStep, read_or_fail
from engine.stopping import resume
from engine.task_params import DEFAULT_TASK, TaskParams
from engine.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class EngineCore:
    """One model with its scheduler."""

    def __init__(
        self,
        config: EngineConfig,
        load: Loader = load_model,
        on_rank_loss: Callable[[str], None] | None = None,
        *,
        is_fresh: bool = False,
    ) -> None:
        """Load everything.

        Args:
            config: the settings.
            load: makes the model that they name.
            on_rank_loss: called, on another thread and with the reason, once one of several ranks is gone or hangs;
                None where nobody needs to know, and a step that fails says so.
            is_fresh: whether this process has computed nothing yet, so that ranks may be copies of it.

        Raises:
            ModelError: the model folder or the configuration cannot be served.
            EngineUnavailable: the model's ranks have not come together.
        """
        self.model_config = ModelConfig.from_dir(config.model)
        config.parallel.check(self.model_config)
        self.tokenizer = Tokenizer.from_dir(config.model)
        self.ranks = RankLeader(config, self.model_config, is_fresh=is_fresh) if config.parallel.num_ranks > 1 else None
        self.compiles: CompileWatch | None = None
        try:
            self.runner = self._load(config, load, on_rank_loss)
        except BaseException:
            self.close()
            raise
        window = self.model_config.sliding_window
        self.scheduler = Scheduler(make_kv_manager(config, self.runner.num_blocks, window), config)
        proposers: dict[str, Proposer] = {"ngram": NgramLookup()}
        if config.draft_model is not None:
            own = config if self.ranks is None else self.ranks.config  # the draft model is on rank 0's device
            proposers["draft"] = DraftModel(own, self.model_config.vocab_size, self.tokenizer)
        self.has_draft_model = config.draft_model is not None
        self.speculation = Speculation(config, self.scheduler.kv, proposers)
        self.stats = EngineStats(num_blocks=self.runner.num_blocks, block_size=config.block_size)
        self.guides = GuideFactory(self.tokenizer)
        self.eos_token_ids = tuple(sorted({*self.model_config.eos_token_ids, *self._own_eos_ids()}))
        self.sequences = SequenceFactory(
            self.eos_token_ids, self.tokenizer, self.runner.max_model_len, self.runner.model.rope_tables
        )
        self.results = Results(self.scheduler, self.stats, self.tokenizer)
        is_gpu = self.runner.placement.device.type == "cuda"
        self._overlap = config.overlap == "on" or (config.overlap == "auto" and is_gpu and self.ranks is None)
        self.compiles = CompileWatch()
        self._flights: list[PendingStep] = []  # the step that is computed beside the loop; in parts where it had to be

    def close(self) -> None:
        """End the model's other ranks, if there are any, and watch no more."""
        if self.compiles is not None:
            self.compiles.close()
        if self.ranks is not None:
            self.ranks.close()

    def _own_eos_ids(self) -> set[int]:
        """Return the tokenizer's ends of a sequence that the model can say."""
        return {token_id for token_id in self.tokenizer.eos_ids if 0 <= token_id < self.model_config.vocab_size}

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return ModelInfo(
            vocab_size=self.model_config.vocab_size,
            max_model_len=self.runner.max_model_len,
            block_size=self.runner.block_size,
            num_blocks=self.runner.num_blocks,
            eos_token_ids=self.eos_token_ids,
            has_draft_model=self.has_draft_model,
            on_gpu=self.runner.placement.device.type == "cuda",
        )

    @property
    def has_work(self) -> bool:
        """Whether a call of `step` would compute anything."""
        return self.scheduler.has_work or bool(self._flights)

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
        self.results.groups.add(sequences)
        return [] if reason is None else [self.results.finish(sequences[0], reason)]

    def abort(self, request_id: int) -> list[RequestOutput]:
        """End a request now and return its sequences' last outputs; none where it has ended already."""
        open_ones = self.results.groups.of(request_id)
        return [self.results.cut_off(sequence, FinishReason.CANCELLED) for sequence in open_ones]

    def step(self) -> list[RequestOutput]:
        """Plan and compute one step, and return what requests gained by it."""
        started = time.monotonic()
        plan = self.scheduler.schedule(started)
        outputs = [self.results.end_expired(sequence) for sequence in plan.expired]
        overlaps = self._overlap and self._is_predictable(plan)
        if not overlaps or len(self._flights) > 1:
            outputs += self._land()
            plan.drop_finished()
        for item in plan.scheduled:
            item.sequence.timings.scheduled = item.sequence.timings.scheduled or started
        if overlaps:
            outputs += self._overtake(plan)
        elif plan.scheduled:
            outputs += self._compute(plan)
        if plan.scheduled:
            self.stats.num_steps += 1
            self.stats.last_step_seconds = time.monotonic() - started
        return outputs

    def _compute(self, plan: StepPlan) -> list[RequestOutput]:
        """Compute a step and take what it gives."""
        self.stats.num_draft_tokens += self.speculation.extend(plan)
        runs, failures = run_isolated(self.runner.run, plan)
        outputs = self._fail_all(failures)
        self.results.account(plan)
        for run in runs:
            outputs += self.results.take_tokens(run) + self.results.take_states(run)
        return outputs

    def _overtake(self, plan: StepPlan) -> list[RequestOutput]:
        """Begin a step, and only then take what the one before it gives."""
        if not plan.scheduled:
            return self._land()
        before = self._flights[0] if self._flights else None
        flights, failures = run_isolated(partial(self.runner.launch, before=before), plan)
        outputs = self._fail_all(failures)
        self.results.account(plan)
        for item in (item for flight in flights for item in flight.items):
            if not item.sequence.is_finished:
                item.sequence.expect_token()
        outputs += self._land()
        self._flights = flights
        return outputs

    def _land(self) -> list[RequestOutput]:
        """Wait for the step in flight and take what it gives."""
        flights, self._flights = self._flights, []
        outputs: list[RequestOutput] = []
        for flight in flights:
            outputs += self.results.take_tokens(read_or_fail(flight))
            for item in flight.items:
                if not item.sequence.is_finished:
                    self.scheduler.kv.register(item.sequence)
        return outputs

    def _is_predictable(self, plan: StepPlan) -> bool:
        """Whether the step can be laid out before the tokens of the one in flight are known."""
        return all(item.sequence.is_predictable for item in plan.scheduled) and not self.speculation.would_extend(plan)

    def _fail_all(self, failures: list[tuple[Sequence, EngineError]]) -> list[RequestOutput]:
        return [self.results.fail(sequence, error) for sequence, error in failures if not sequence.is_finished]

    def read_stats(self) -> EngineStats:
        """Return the statistics, brought up to date."""
        self.stats.num_waiting = len(self.scheduler.waiting)
        self.stats.num_waiting_tokens = self.scheduler.waiting.num_tokens
        self.stats.num_running = len(self.scheduler.running)
        self.stats.kv_usage = self.scheduler.kv.usage
        self.stats.num_preemptions = self.scheduler.num_preemptions
        return self.stats

    def prepare_adapters(self, adapters: Collection[LoadedAdapter]) -> None:
        """Have other ranks load their parts of adapters too, and return once they have."""
        if self.ranks is not None and adapters:
            self.ranks.prepare([AdapterName(each.name, each.digest) for each in adapters])
            self.runner.meet_ranks()

    def _load(self, config: EngineConfig, load: Loader, on_rank_loss: Callable[[str], None] | None) -> ModelRunner:
        if self.ranks is None:
            runner = ModelRunner(config, self.model_config, load=load)
        else:
            runner = ModelRunner(self.ranks.config, self.model_config, self.ranks.member)
            if on_rank_loss is not None:
                self.ranks.watch(on_rank_loss)
        runner.warm_up()
        return runner

"""What the engine core and its parent say to each other.

Knows plain values only, so that the parent needs neither torch nor the model.
"""

from dataclasses import dataclass

from engine.config import EngineConfig
from engine.errors import EngineError, grpc_code
from engine.outputs import EngineStats, FinishReason, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from engine.task_params import DEFAULT_TASK, TaskParams


@dataclass(slots=True, frozen=True)
class ModelInfo:
    """What clients need to know of the served model; lengths in tokens. `on_gpu`: whether one computes it."""

    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    eos_token_ids: tuple[int, ...]
    has_draft_model: bool = False
    on_gpu: bool = False


@dataclass(slots=True, frozen=True)
class StartCommand:
    """What the core is to serve, and the adapters that it is to have before its first request."""

    config: EngineConfig
    adapters: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class AddCommand:
    """Start a request.

    Attributes:
        arrived: seconds of the machine's monotonic clock.
        resume_ids: the completion's first tokens, delivered already; the request goes on behind them.
    """

    request_id: int
    prompt_ids: list[int]
    params: SamplingParams
    arrived: float
    resume_ids: tuple[int, ...] = ()
    scheduling: SchedulingParams = DEFAULT_SCHEDULING
    task: TaskParams = DEFAULT_TASK


@dataclass(slots=True, frozen=True)
class AbortCommand:
    """End a request; unknown ids are ignored."""

    request_id: int


@dataclass(slots=True, frozen=True)
class AdapterCommand:
    """Load or unload an adapter or, with an empty name, tell which there are; answered like a request."""

    request_id: int
    name: str = ""
    is_unload: bool = False


@dataclass(slots=True, frozen=True)
class StartFailed:
    """The core could not start; the message is for the user."""

    message: str


Command = AddCommand | AbortCommand | AdapterCommand
Message = ModelInfo | StartFailed | EngineStats | list[RequestOutput]


def error_output(request_id: int, error: EngineError) -> RequestOutput:
    """Return the one and last output of a request that ends with `error`."""
    return RequestOutput(request_id, finish_reason=FinishReason.ERROR, error=str(error), error_code=grpc_code(error))

"""Every error the engine raises, and the gRPC code each one means.

Knows names, messages and codes. Does not know Triton, torch or who reads the message.

    EngineError
    |- InvalidRequest          the caller's fault: refused before it costs anything
    |  `- PromptTooLong
    |- QueueFull               the engine has no room now; another instance may
    |- EngineUnavailable       the core is starting, restarting or gone
    |  `- RanksFailed          one of the model's ranks is gone, and so nothing can be computed any more
    |- RequestFailed           this one request broke inside the engine
    |- OutOfBlocks             internal: the scheduler answers it by preempting
    `- ModelError              the checkpoint or the configuration cannot be served
       |- UnsupportedModel
       `- WeightMismatch

Invariant: each class has exactly one entry in `GRPC_CODES`, found by the nearest base class.
"""


class EngineError(Exception):
    """Base of all engine errors; the message is meant for the user."""


class InvalidRequest(EngineError):
    """A request that can never be served as it was sent."""


class PromptTooLong(InvalidRequest):
    """A prompt, or prompt plus output, that exceeds the model's context."""

    def __init__(self, num_prompt_tokens: int, max_model_len: int, output: str = "it alone is") -> None:
        """Name the length and the limit, in tokens, and what of the output comes to it, in words."""
        super().__init__(
            f"the prompt has {num_prompt_tokens} tokens; {output} more than the model's limit of {max_model_len} tokens"
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_model_len = max_model_len


class QueueFull(EngineError):
    """The waiting queue is at its bound."""

    def __init__(self, depth: str, limit: int) -> None:
        """Say what waits, and name the bound."""
        super().__init__(f"the queue is full: {depth} and the limit is {limit}")
        self.limit = limit


class EngineUnavailable(EngineError):
    """The engine core cannot take or finish requests right now."""


class RanksFailed(EngineUnavailable):
    """A rank of the model died, hung or fell out of step; the core must be started again."""


class RequestFailed(EngineError):
    """One request failed inside the engine; others go on."""


class OutOfBlocks(EngineError):
    """Every KV-cache block is in use."""

    def __init__(self, num_blocks: int) -> None:
        """Name the size of the pool."""
        super().__init__(f"all {num_blocks} KV-cache blocks are in use")
        self.num_blocks = num_blocks


class ModelError(EngineError):
    """A checkpoint or engine configuration that cannot be served."""


class UnsupportedModel(ModelError):
    """An architecture, or an option of one, that this engine does not implement."""


class WeightMismatch(ModelError):
    """A tensor that is missing, unexpected or of the wrong shape."""


GRPC_CODES: dict[type[EngineError], str] = {
    InvalidRequest: "INVALID_ARGUMENT",
    PromptTooLong: "INVALID_ARGUMENT",
    QueueFull: "RESOURCE_EXHAUSTED",
    EngineUnavailable: "UNAVAILABLE",
    RanksFailed: "UNAVAILABLE",
    RequestFailed: "INTERNAL",
    OutOfBlocks: "RESOURCE_EXHAUSTED",
    ModelError: "FAILED_PRECONDITION",
    UnsupportedModel: "FAILED_PRECONDITION",
    WeightMismatch: "FAILED_PRECONDITION",
    EngineError: "INTERNAL",
}


def grpc_code(error: EngineError) -> str:
    """Return the name of the gRPC status code that `error` means."""
    return next(GRPC_CODES[kind] for kind in type(error).__mro__ if kind in GRPC_CODES)

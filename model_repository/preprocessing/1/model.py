"""Triton model `preprocessing`: refuses a bad request, or makes prompt ids and checked options of it.

Knows Triton's objects. What a request may hold is known by `engine.request_inputs`, text by `engine.text`.
One bad request of a batch gets an error of its own; the others are served.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from engine.config import EngineConfig
from engine.errors import EngineError
from engine.heartbeat import Heartbeat, watch_parent
from engine.messages import ModelInfo
from engine.models.config import ModelConfig
from engine.request_inputs import RequestReader
from engine.text.tokenizer import Tokenizer
from engine.wire_errors import triton_code, triton_error

logger = logging.getLogger(__name__)


class TritonPythonModel:
    """What Triton loads, calls and unloads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model folder's tokenizer and limits."""
        watch_parent()
        config = EngineConfig.from_env()
        tokenizer = Tokenizer.from_dir(config.model)
        self._reader = RequestReader(tokenizer, read_model_info(config, tokenizer))
        description, kind = "Grows while the model's process is healthy", pb_utils.MetricFamily.GAUGE
        self._family = pb_utils.MetricFamily(name="llm_heartbeat", description=description, kind=kind)
        gauge = self._family.Metric(labels={"model": args["model_name"]})
        self._heartbeat = Heartbeat(lambda: gauge.increment(1))

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each request with prompt ids and options, or with its error."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Stop the heartbeat."""
        self._heartbeat.stop()

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        received_ns = np.array([time.time_ns()], dtype=np.int64)
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            prepared = self._reader.read(tensors, request.parameters())
        except EngineError as error:
            return _error_response(*triton_error(error))
        except Exception as error:  # a bug of ours must fail this request only, not the whole batch
            logger.exception("preprocessing failed")
            return _error_response(*triton_code("INTERNAL", f"preprocessing failed: {error!r}"))
        options = np.array([prepared.options.encode()], dtype=np.object_)
        prompt_ids = np.array(prepared.prompt_ids, dtype=np.int32)
        resume_ids = np.array(prepared.resume_ids, dtype=np.int32)
        arrays = {"prompt_ids": prompt_ids, "request_options": options, "resume_token_ids": resume_ids}
        arrays["received_ns"] = received_ns
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def read_model_info(config: EngineConfig, tokenizer: Tokenizer) -> ModelInfo:
    """Return the limits of the model folder, narrowed by the configuration.

    Raises:
        ModelError: config.json cannot be served.
    """
    model = ModelConfig.from_dir(config.model)
    limit = model.max_sequence_length
    return ModelInfo(
        vocab_size=model.vocab_size,
        max_model_len=min(limit, config.max_model_len or limit),
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        eos_token_ids=tuple(sorted(tokenizer.eos_ids)),
    )


def _error_response(code: str, message: str) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))

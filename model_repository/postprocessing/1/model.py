"""Triton model `postprocessing`: the text of one chunk, without any state.

Knows Triton's objects. How a chunk becomes text is known by `engine.text`. Each input gets exactly one response, in
order, since Triton pairs them with the engine's responses by counting.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from engine.config import EngineConfig
from engine.heartbeat import Heartbeat, watch_parent
from engine.text.text_window import window_text
from engine.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class TritonPythonModel:
    """What Triton loads, calls and unloads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model folder's tokenizer."""
        watch_parent()
        self._tokenizer = Tokenizer.from_dir(EngineConfig.from_env().model)
        description, kind = "Grows while the model's process is healthy", pb_utils.MetricFamily.GAUGE
        self._family = pb_utils.MetricFamily(name="llm_heartbeat", description=description, kind=kind)
        gauge = self._family.Metric(labels={"model": args["model_name"]})
        self._heartbeat = Heartbeat(lambda: gauge.increment(1))

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each chunk with its text."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Stop the heartbeat."""
        self._heartbeat.stop()

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            window = request.inputs()[0].as_numpy().reshape(-1).tolist()
            text = window_text(self._tokenizer, window)
        except Exception as error:  # whatever is wrong with one chunk must not fail the batch
            logger.exception("postprocessing failed")
            message = f"INTERNAL: postprocessing failed: {error}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))
        array = np.array([text.encode()], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", array)])

"""A decoupled Triton model that streams words and beats.

Knows Triton's python backend. Does not know the engine.
"""

from __future__ import annotations

import threading

import numpy as np
import triton_python_backend_utils as pb_utils

BEAT_SECONDS = 0.25


class TritonPythonModel:
    """What Triton loads, calls and unloads."""

    def initialize(self, args: dict[str, str]) -> None:
        self._family = pb_utils.MetricFamily(
            name="llm_heartbeat", description="beats", kind=pb_utils.MetricFamily.GAUGE
        )
        self._beat = self._family.Metric(labels={"model": args["model_name"]})
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat_on)
        self._thread.start()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            limit = int(inputs["max_tokens"][0])
            for index in range(1, limit + 1):
                is_last = index == limit
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_last else 0
                sender.send(word(index, is_last=is_last), flags=flags)

    def finalize(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat_on(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            self._beat.increment(1)


def word(index: int, *, is_last: bool) -> pb_utils.InferenceResponse:
    strings = {"text_output": f"w{index} ", "finish_reason": "length" if is_last else ""}
    numbers = {"completion_tokens": index, "prompt_tokens": 1}
    tensors = [pb_utils.Tensor(name, np.array([text.encode()], np.object_)) for name, text in strings.items()]
    tensors += [pb_utils.Tensor(name, np.array([number], np.int32)) for name, number in numbers.items()]
    return pb_utils.InferenceResponse(tensors)

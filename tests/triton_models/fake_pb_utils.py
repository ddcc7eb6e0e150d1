"""A stand-in for `triton_python_backend_utils`, strict where Triton is: one final response, none after it."""

import json
import threading
from typing import Any, ClassVar

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonModelException(Exception):
    pass


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)

    def __init__(self, message: str, code: int = 1) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray)
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        assert bool(output_tensors) != (error is not None)
        self.tensors = {t.name(): t.as_numpy() for t in output_tensors or ()}
        self._error = error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError:
        assert self._error is not None
        return self._error


class ResponseSender:
    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.done = threading.Event()
        self.cancelled = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self.done.is_set():
            raise TritonModelException("response sender has been closed")
        if response is not None:
            self.responses.append(response)
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.done.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class InferenceRequest:
    def __init__(self, parameters: Any = None, request_id: Any = "", **tensors: Any) -> None:
        self._tensors = [Tensor(name, value) for name, value in tensors.items()]
        self._parameters, self._request_id = parameters or {}, request_id
        self.sender = ResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def request_id(self) -> str:
        return self._request_id

    def get_response_sender(self) -> ResponseSender:
        return self.sender


class Metric:
    def __init__(self, is_counter: bool) -> None:
        self.value, self._is_counter = 0.0, is_counter
        self.changed = threading.Event()

    def increment(self, value: float) -> None:
        assert value >= 0
        self.value += value
        self.changed.set()

    def set(self, value: float) -> None:
        assert not self._is_counter
        self.value = value


class MetricFamily:
    COUNTER, GAUGE = range(2)
    made: ClassVar[dict[str, "MetricFamily"]] = {}

    def __init__(self, *, name: str, description: str, kind: int) -> None:
        assert description
        self.kind, self.metrics = kind, {}
        self.made[name] = self

    def Metric(self, *, labels: dict[str, str]) -> Metric:  # noqa: N802
        metric = Metric(self.kind == self.COUNTER)
        self.metrics[tuple(sorted(labels.items()))] = metric
        return metric

"""A raw KServe client for tests: requests built tensor by tensor, so that they can be wrong in any way."""

import struct
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

pb: Any = service_pb2
TIMEOUT = 120.0
DTYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "UINT64": np.uint64, "BOOL": np.bool_}
OPTIONS = {
    "max_tokens": "INT32",
    "min_tokens": "INT32",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "min_p": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "random_seed": "UINT64",
    "stop_token_ids": "INT32",
    "ignore_eos": "BOOL",
    "return_log_probs": "BOOL",
    "stream": "BOOL",
    "input_ids": "INT32",
    "resume_token_ids": "INT32",
    "num_top_log_probs": "INT32",
    "num_return_sequences": "INT32",
    "return_prompt_log_probs": "BOOL",
    "echo": "BOOL",
}
OUTPUT_DTYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


def add_tensor(request: Any, name: str, datatype: str, values: Any, shape: list[int] | None = None) -> None:
    """Append one input, whatever it is."""
    items = values if isinstance(values, list) else [values]
    if datatype == "BYTES":
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        raw = b"".join(struct.pack("<I", len(item)) + item for item in encoded)
    else:
        raw = np.array(items, dtype=DTYPES[datatype]).tobytes()
    request.inputs.add(name=name, datatype=datatype, shape=shape if shape is not None else [len(items)])
    request.raw_input_contents.append(raw)


def make_request(text: str | None = None, *, request_id: str = "", **options: Any) -> Any:
    """Return a request to `llm`; `options` are named like the tensors."""
    request = pb.ModelInferRequest(model_name="llm", id=request_id)
    if text is not None:
        add_tensor(request, "text_input", "BYTES", text)
    for name, value in options.items():
        add_tensor(request, name, OPTIONS.get(name, "BYTES"), value)
    return request


@dataclass
class Answer:
    """Everything one request was told."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    token_indices: list[int] = field(default_factory=list)
    chunk_lengths: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All deltas joined."""
        return "".join(self.texts)

    @property
    def num_finals(self) -> int:
        """Final answers: a finish reason or an error."""
        return sum(bool(reason) for reason in self.finish_reasons) + len(self.errors)

    def take(self, message: Any) -> None:
        """Take one response."""
        if message.error_message:
            self.errors.append(message.error_message)
            return
        outputs = read_outputs(message.infer_response)
        if not outputs:
            return
        self.texts.append(outputs["text_output"])
        self.token_indices.append(int(outputs["token_index"][0]))
        self.chunk_lengths.append(len(outputs["token_ids"]))
        self.token_ids += outputs["token_ids"].tolist()
        self.log_probs += outputs["log_probs"].tolist() if "log_probs" in outputs else []
        self.finish_reasons.append(outputs["finish_reason"])
        self.last = outputs

    def check_order(self) -> None:
        """Assert that chunks are gapless and in order, and that the request ended just once."""
        assert self.num_finals == 1, (self.finish_reasons, self.errors)
        if not self.errors:
            assert self.finish_reasons[-1]
            assert self.last["completion_tokens"][0] == len(self.token_ids)
        seen = 0
        for index, num_tokens in zip(self.token_indices, self.chunk_lengths, strict=True):
            assert index == seen
            seen += num_tokens


def read_outputs(response: Any) -> dict[str, Any]:
    """Decode every output of a ModelInferResponse."""
    decoded: dict[str, Any] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            decoded[output.name] = raw[4:].decode()
        else:
            decoded[output.name] = np.frombuffer(raw, dtype=OUTPUT_DTYPES[output.datatype])
    return decoded


@contextmanager
def connect(url: str) -> Iterator[Any]:
    """Yield the raw stub of a server."""
    with grpc.insecure_channel(url, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def ask(stub: Any, request: Any, timeout: float = TIMEOUT) -> Answer:
    """Send one request on a stream of its own and read it to the end."""
    answer = Answer()
    for message in stub.ModelStreamInfer(iter([request]), timeout=timeout):
        answer.take(message)
    return answer


class Countdown:
    """Set once so many responses have come."""

    def __init__(self, num_responses: int) -> None:
        self._left = num_responses
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def tick(self) -> None:
        """Count one."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._is_over.set()

    def wait(self) -> None:
        """Return when it is over."""
        assert self._is_over.wait(TIMEOUT), f"{self._left} responses have not come"


def ask_all(url: str, requests: Iterable[Any], countdown: Countdown | None = None) -> list[Answer]:
    """Send all requests at once, each on a stream of its own; a broken stream leaves its status as an error."""

    def work(stub: Any, request: Any, answer: Answer) -> None:
        try:
            for message in stub.ModelStreamInfer(iter([request]), timeout=TIMEOUT):
                answer.take(message)
                if countdown is not None:
                    countdown.tick()
        except grpc.RpcError as error:
            answer.errors.append(str(error))

    with connect(url) as stub:
        answers = [(request, Answer()) for request in requests]
        threads = [threading.Thread(target=work, args=(stub, request, answer)) for request, answer in answers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [answer for _, answer in answers]


def read_metrics(url: str) -> dict[str, float]:
    """Return every sample of a Prometheus page by its name and labels."""
    with urllib.request.urlopen(f"http://{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] not in "#")}

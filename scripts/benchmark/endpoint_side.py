"""The whole path: KServe gRPC streams to a gateway or an instance, one a request, on raw stubs.

Knows the ensemble's tensors and gRPC. Does not know processes: the cluster is started elsewhere. It runs in a process of
its own (`python -m scripts.benchmark.endpoint_side URL`), fed with jobs on stdin, so that its work is not the engine's.
"""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scripts.benchmark.engine_side import RunResult
from scripts.benchmark.workload import Workload

MODEL = "llm"
METHOD_TIMEOUT_SECONDS = 600.0


class EndpointSide:
    """A client process that takes workloads."""

    def __init__(self, url: str, vocab_size: int) -> None:
        """Start the client for the server at `url`."""
        self.vocab_size = vocab_size
        command = [sys.executable, "-m", "scripts.benchmark.endpoint_side", url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, workload: Workload, seed: int) -> RunResult:
        """Send all requests at once and wait for the last token.

        Raises:
            RuntimeError: a request failed, or the client process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"workload": asdict(workload), "seed": seed, "vocab_size": self.vocab_size}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the client process ended"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return RunResult(answer["seconds"], answer["ttfts"])

    def close(self) -> None:
        """End the client process."""
        self._process.communicate()


def encode_request(prompt: list[int], num_output: int) -> bytes:
    """Return a serialized ModelInferRequest for greedy output of just `num_output` tokens."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensors = (
        ("input_ids", "INT32", np.array(prompt, dtype=np.int32)),
        ("max_tokens", "INT32", np.array([num_output], dtype=np.int32)),
        ("temperature", "FP32", np.array([0.0], dtype=np.float32)),
        ("ignore_eos", "BOOL", np.array([True])),
        ("stream", "BOOL", np.array([True])),
    )
    for name, datatype, array in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=list(array.shape))
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


class _Stream(threading.Thread):
    """One request on a stream of its own; reads serialized responses and parses the last one only."""

    def __init__(self, call: grpc.StreamStreamMultiCallable, request: bytes, num_output: int) -> None:
        super().__init__()
        self._call, self._request, self._num_output = call, request, num_output
        self.ttft = 0.0
        self.error: str | None = None

    def run(self) -> None:
        started = time.monotonic()
        last = b""
        try:
            for message in self._call(iter([self._request]), timeout=METHOD_TIMEOUT_SECONDS):
                if not last:
                    self.ttft = time.monotonic() - started
                last = message
        except grpc.RpcError as error:
            self.error = str(error)
            return
        response = service_pb2.ModelStreamInferResponse.FromString(last)
        names = [output.name for output in response.infer_response.outputs]
        if response.error_message or "completion_tokens" not in names:
            self.error = response.error_message or "the last response has no completion_tokens"
            return
        raw = response.infer_response.raw_output_contents[names.index("completion_tokens")]
        if (count := int(np.frombuffer(raw, dtype=np.int32)[0])) != self._num_output:
            self.error = f"{count} tokens came instead of {self._num_output}"


def run_job(call: grpc.StreamStreamMultiCallable, job: dict[str, object]) -> dict[str, object]:
    """Run one workload and return its wall time and times to first token, or the first error."""
    workload = Workload(**job["workload"])  # type: ignore[arg-type]
    prompts = workload.prompts(int(job["vocab_size"]), int(job["seed"]))  # type: ignore[call-overload]
    streams = [_Stream(call, encode_request(prompt, workload.num_output), workload.num_output) for prompt in prompts]
    started = time.monotonic()
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    errors = [stream.error for stream in streams if stream.error]
    if errors:
        return {"error": f"{len(errors)} of {len(streams)} requests failed, the first with: {errors[0]}"}
    return {"seconds": time.monotonic() - started, "ttfts": [stream.ttft for stream in streams]}


def main(url: str) -> None:
    """Serve jobs from stdin until it ends."""
    with grpc.insecure_channel(url, options=[("grpc.max_receive_message_length", -1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10)
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        for line in sys.stdin:
            print(json.dumps(run_job(call, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""The whole path: KServe gRPC streams to a gateway or an instance, one a request, on raw stubs.

Knows gRPC. Does not know tensors or who serves: the cluster is started elsewhere. The client is a process of its own
(`python -m scripts.benchmark.endpoint_side URL`), fed with jobs on stdin.
"""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import grpc

from scripts.benchmark.engine_side import RunResult
from scripts.benchmark.workload import Workload
from scripts.launcher.kserve import infer_request, pb, read_progress
from scripts.launcher.workload import Arrival

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
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
        progress = read_progress(pb.ModelStreamInferResponse.FromString(last))
        if progress.error or progress.num_tokens != self._num_output:
            self.error = progress.error or f"{progress.num_tokens} tokens came instead of {self._num_output}"


def _encode(prompt: list[int], num_output: int) -> bytes:
    arrival = Arrival(at=0.0, prompt=prompt, max_tokens=num_output, is_exact=True)
    return infer_request(arrival, request_id="").SerializeToString()


def run_job(call: grpc.StreamStreamMultiCallable, job: dict[str, object]) -> dict[str, object]:
    """Run one workload and return its wall time and times to first token, or the first error."""
    workload = Workload(**job["workload"])  # type: ignore[arg-type]
    prompts = workload.prompts(int(job["vocab_size"]), int(job["seed"]))  # type: ignore[call-overload]
    streams = [_Stream(call, _encode(prompt, workload.num_output), workload.num_output) for prompt in prompts]
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
        call = channel.stream_stream(METHOD)
        for line in sys.stdin:
            print(json.dumps(run_job(call, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

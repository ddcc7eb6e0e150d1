"""The whole path: KServe gRPC streams to a gateway or an instance, one a request.

Knows gRPC. Does not know tensors or who serves: the cluster is started elsewhere. The client is a process of its own
(`python -m scripts.benchmark.endpoint_side URL`), fed with jobs on stdin. It shares the machine with what it measures:
so it speaks HTTP/2 by way of `gateway.wire`, at a tenth of the cost of gRPC's own runtime (220 us a message).
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict

import uvloop

from gateway.call import own_block
from gateway.link import Hub
from gateway.patience import Patience
from gateway.status import Failure, failure_of_reset, failure_of_trailers
from gateway.upstream import Pool, Route, UpstreamLink
from gateway.wire.events import DataReceived, HeadersReceived
from gateway.wire.messages import MessageReader, frame_message
from scripts.benchmark.engine_side import RunResult
from scripts.benchmark.workload import Workload
from scripts.launcher.kserve import infer_request, pb, read_progress
from scripts.launcher.workload import Arrival

METHOD = b"/inference.GRPCInferenceService/ModelStreamInfer"
TIMEOUT_SECONDS = 600.0
MAX_MESSAGE_BYTES = 1 << 30


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


class _Stream:
    """One request on a stream of its own; parses the last response only."""

    def __init__(self, link: UpstreamLink, authority: str, request: bytes, num_output: int) -> None:
        self._link = link
        self._num_output = num_output
        self._started = time.monotonic()
        self._reader = MessageReader(MAX_MESSAGE_BYTES)
        self._last = b""
        self.ttft = 0.0
        self.error: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        stream = link.open(own_block(METHOD, b"http", authority.encode()), self)
        link.connection.outbox.send_data(stream, frame_message(request), end_stream=True)

    def on_headers(self, event: HeadersReceived) -> None:
        """Take response headers or trailers."""
        if event.end_stream:
            self._end(failure_of_trailers(event.headers))

    def on_data(self, event: DataReceived) -> None:
        """Take a part of the response."""
        for _, message in self._reader.feed(event.payload):
            self._last = message
            self.ttft = self.ttft or time.monotonic() - self._started
        self._link.connection.consume(event.stream, event.size)

    def on_reset(self, code: int) -> None:
        """Take a reset by the server."""
        self._end(failure_of_reset(code, self._link.name))

    def on_lost(self, failure: Failure, code: int | None = None) -> None:  # noqa: ARG002 - the call has failed either way
        """Take the end of the connection."""
        self._end(failure)

    def on_defect(self, failure: Failure) -> None:
        """Take a defect of this client's own."""
        self._end(failure)

    def written(self, size: int) -> None:
        """Nobody waits for these bytes."""

    def _end(self, failure: Failure | None) -> None:
        if not self.error.done():
            self.error.set_result(failure.message if failure is not None else self._judge())

    def _judge(self) -> str | None:
        progress = read_progress(pb.ModelStreamInferResponse.FromString(self._last))
        if progress.error or progress.num_tokens == self._num_output:
            return progress.error or None
        return f"{progress.num_tokens} tokens came instead of {self._num_output}"


def _encode(prompt: list[int], num_output: int) -> bytes:
    arrival = Arrival(at=0.0, prompt=prompt, max_tokens=num_output, is_exact=True)
    return infer_request(arrival, request_id="").SerializeToString()


async def run_job(pool: Pool, job: dict[str, object]) -> dict[str, object]:
    """Run one workload and return its wall time and times to first token, or the first error."""
    workload = Workload(**job["workload"])  # type: ignore[arg-type]
    prompts = workload.prompts(int(job["vocab_size"]), int(job["seed"]))  # type: ignore[call-overload]
    requests = [_encode(prompt, workload.num_output) for prompt in prompts]
    started = time.monotonic()
    streams = [_Stream(pool.acquire(), pool.name, request, workload.num_output) for request in requests]
    pool.hub.flush()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        errors = [error for stream in streams if (error := await stream.error)]
    if errors:
        return {"error": f"{len(errors)} of {len(streams)} requests failed, the first with: {errors[0]}"}
    return {"seconds": time.monotonic() - started, "ttfts": [stream.ttft for stream in streams]}


async def main(url: str) -> None:
    """Serve jobs from stdin until it ends."""
    pool = Pool(Hub(), url, Route(url, Patience()), failed=lambda reason: print(reason, file=sys.stderr))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await run_job(pool, json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))

"""Load test for KServe gRPC streaming, for Locust.

Knows channels, clocks and Locust's table. Does not know what is sent or when: that is `launcher/workload.py`.

    locust -f scripts/locustfile.py --headless -u 8 -r 8 -t 10s --host 127.0.0.1:8001

Rows of the table: E2E is the whole request, with the tokens it got as the response's length, and counts failures;
TTFT the time to the first token; ITL the time between two responses, divided by the tokens of the later one.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from grpc.experimental import gevent as grpc_gevent

grpc_gevent.init_gevent()  # before any channel exists, or calls block all users
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gevent  # noqa: E402
import grpc  # noqa: E402
from locust import User, constant, events, task  # noqa: E402
from locust.argument_parser import LocustArgumentParser  # noqa: E402
from locust.env import Environment  # noqa: E402
from tritonclient.grpc import service_pb2_grpc  # noqa: E402

from scripts.launcher.kserve import infer_request, read_progress  # noqa: E402
from scripts.launcher.workload import PROMPTS, Arrival, read_prompts, synthetic_arrivals, trace_arrivals  # noqa: E402

CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # else all users share one connection
DEFAULT_HOST = "127.0.0.1:8001"


class StreamError(Exception):
    """A stream that ended otherwise than it should."""


class Schedule:
    """The arrivals that all users of this process share, each sent once, at its time or as soon as a user is free."""

    def __init__(self, options: Namespace) -> None:
        self._arrivals = _arrivals(options)
        self._started = time.monotonic()
        self._num_sent = 0
        self.num_open = 0

    def next(self) -> tuple[str, Arrival] | None:
        """Wait for the next arrival's time and return it with an id, or None behind the last."""
        arrival = next(self._arrivals, None)
        if arrival is None:
            return None
        self._num_sent += 1
        self.num_open += 1
        name = f"load-{self._num_sent}"
        gevent.sleep(max(0.0, self._started + arrival.at - time.monotonic()))
        return name, arrival


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of this test to Locust's own."""
    parser.add_argument("--prompts", default="", help="File with one prompt a line (text or JSON)")
    parser.add_argument("--max-tokens", type=int, default=64, help="Most tokens of each answer")
    parser.add_argument("--requests", type=int, default=0, help="End after so many requests; 0: at the run time's end")
    parser.add_argument("--rate", type=float, default=0.0, help="Requests a second at random times; 0: back to back")
    parser.add_argument("--trace", default="", help="Azure CSV or Mooncake jsonl with times and lengths")
    parser.add_argument("--length-scale", type=float, default=1.0, help="Factor on the trace's lengths")
    parser.add_argument("--time-scale", type=float, default=1.0, help="Factor on the trace's times")


@events.test_start.add_listener
def start_schedule(environment: Environment, **_other: object) -> None:
    """Begin the arrivals when the test begins."""
    TritonUser.schedule = Schedule(environment.parsed_options or Namespace())


class TritonUser(User):
    """A client with a connection of its own that streams one completion after the other."""

    host = DEFAULT_HOST
    wait_time = constant(0)
    schedule: Schedule

    def on_start(self) -> None:
        """Open this user's connection."""
        target = str(self.host or DEFAULT_HOST).removeprefix("grpc://").removeprefix("http://")
        self.channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def on_stop(self) -> None:
        """Close this user's connection."""
        self.channel.close()

    @task
    def complete(self) -> None:
        """Send the next arrival and report how it went."""
        planned = self.schedule.next()
        if planned is None:
            self._leave()
            return
        started = time.perf_counter()
        num_tokens = 0
        failure: Exception | None = None
        try:
            num_tokens = self._stream(planned[1], planned[0], started)
        except (grpc.RpcError, StreamError) as error:
            failure = error
        self.schedule.num_open -= 1
        self._report("E2E", time.perf_counter() - started, num_tokens, failure)

    def _leave(self) -> None:
        """Stop this user, and the whole test once the last answer is there."""
        if not self.schedule.num_open and self.environment.runner:
            gevent.spawn(self.environment.runner.quit)
        self.stop()

    def _stream(self, arrival: Arrival, request_id: str, started: float) -> int:
        """Read one stream to its end, report TTFT and ITL, and return the number of tokens.

        Raises:
            StreamError: the server sent an error, or ended the stream without a reason.
        """
        num_tokens, last = 0, started
        reason = ""
        for message in self.stub.ModelStreamInfer(iter([infer_request(arrival, request_id)])):
            progress = read_progress(message)
            if progress.error:
                raise StreamError(progress.error)
            now = time.perf_counter()
            gained = progress.num_tokens - num_tokens
            if gained > 0:
                seconds = now - last
                self._report("ITL" if num_tokens else "TTFT", seconds / gained if num_tokens else seconds, gained)
                num_tokens, last = progress.num_tokens, now
            reason = progress.finish_reason or reason
        if reason in ("", "error"):
            raise StreamError(f"the stream ended after {num_tokens} tokens with finish reason {reason!r}")
        return num_tokens

    def _report(self, row: str, seconds: float, num_tokens: int, failure: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=row,
            name="llm",
            response_time=seconds * 1000,
            response_length=num_tokens,
            exception=failure,
            context={},
        )


def _arrivals(options: Namespace) -> Iterator[Arrival]:
    if options.trace:
        arrivals = trace_arrivals(Path(options.trace), options.length_scale, options.time_scale)
    else:
        prompts = read_prompts(Path(options.prompts)) if options.prompts else PROMPTS
        arrivals = synthetic_arrivals(prompts, options.max_tokens, options.rate)
    return islice(arrivals, options.requests or None)

"""Triton model `llm_engine`: hands requests to the engine core and its outputs back, chunk by chunk.

Knows Triton's objects. The core runs in a process of its own behind `EngineClient`; coalescing and sender threads are
the `Responder`'s. `execute` only submits: it never waits for the engine and never sends a chunk.

Invariants:
1. Every request gets exactly one response flagged final, whatever becomes of it.
2. `send` and `is_cancelled` are called on sender and watcher threads only, but for refusals and aborts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from engine.adapter_commands import read_adapter_command
from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import EngineError, InvalidRequest
from engine.heartbeat import Heartbeat, watch_parent
from engine.input_arrays import read_string
from engine.metrics import EngineMetrics
from engine.open_requests import OpenRequests
from engine.output_timing import OutputTimer
from engine.outputs import FinishReason, RequestOutput
from engine.reply_stream import Delivery, Reply
from engine.reply_tensors import ReplyTensors
from engine.request_check import resumed_output
from engine.request_inputs import KEY_PARAMETER, SEED_KEY_PARAMETER, read_resume
from engine.request_options import RequestOptions
from engine.responder import Responder
from engine.response_budget import seconds_per_response
from engine.text.detokenizer import Chunk
from engine.text.token_bytes import TokenBytes
from engine.text.tokenizer import Tokenizer
from engine.wire_errors import triton_code, triton_error

NUM_SENDERS = 2  # one blocked send must not hold up the others; more threads only take turns on the same pipe
CANCEL_POLL_SECONDS = 1.0
CLOSE_SECONDS = 2.0
logger = logging.getLogger(__name__)


class TritonPythonModel:
    """What Triton loads, calls and unloads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the engine core and wait until it takes requests."""
        watch_parent()
        config = EngineConfig.from_env()
        self._exporter = TritonMetrics()
        self._metrics = EngineMetrics(self._exporter)
        timer = OutputTimer(self._metrics.observe, time.monotonic)
        tokenizer = Tokenizer.from_dir(config.model)
        self._bytes_of = TokenBytes(tokenizer)
        self._responder = Responder(tokenizer, num_threads=NUM_SENDERS, on_output=timer.see)
        self._open = OpenRequests(time.monotonic)
        self._watched: dict[int, pb_utils.InferenceResponseSender] = {}
        self._client = EngineClient(config, self._responder.push)
        self._client.start()
        on_gpu, num_cores = self._client.info.on_gpu, len(os.sched_getaffinity(0))
        self._responder.seconds_per_response = seconds_per_response(num_cores, on_gpu=on_gpu)
        labels = {"model": args["model_name"]}
        self._pulse = self._exporter.gauge("llm_heartbeat", "Grows while the model's process is healthy", labels)
        self._heartbeat = Heartbeat(self._beat)
        self._cancel_watch = Heartbeat(self._abort_cancelled, seconds=CANCEL_POLL_SECONDS)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Submit each request; responses follow from the sender threads."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except EngineError as error:
                _send_error(sender, *triton_error(error))
            except Exception as error:  # a bug of ours must fail this request only, and must not leave it hanging
                logger.exception("llm_engine failed")
                _send_error(sender, *triton_code("INTERNAL", f"llm_engine failed: {error!r}"))

    def finalize(self) -> None:
        """End every open request with an error, then the core."""
        self._cancel_watch.stop()
        self._client.close()
        self._responder.close(CLOSE_SECONDS)
        self._heartbeat.stop()

    def _accept(self, request: pb_utils.InferenceRequest, sender: pb_utils.InferenceResponseSender) -> None:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if "abort" in tensors:
            self._abort(sender, tensors)
            return
        if "adapters" in tensors:
            self._manage(sender, tensors)
            return
        missing = sorted({"prompt_ids", "request_options"} - set(tensors))
        if missing:
            raise InvalidRequest(f"{missing[0]} is missing; call the model llm, or give prompt_ids and request_options")
        options = RequestOptions.from_json(read_string("request_options", tensors["request_options"]))
        given = json.loads(request.parameters() or "{}")
        own_key = given.get(KEY_PARAMETER)
        seed_key = given.get(SEED_KEY_PARAMETER, own_key)
        params = options.sampling if seed_key is None else options.sampling.with_seed_of(seed_key)
        prompt_ids, resume_ids = tensors["prompt_ids"].reshape(-1).tolist(), read_resume(tensors)
        delivery = Delivery(resume_ids, prompt_ids if params.echo else (), params.prompt_logprobs)
        output_ids = resumed_output(prompt_ids, params, resume_ids)
        request_id = self._client.submit(
            prompt_ids, params, time.monotonic(), output_ids, scheduling=options.scheduling, task=options.task
        )
        if own_key is None:
            self._watched[request_id] = sender
        is_late = self._open.register(own_key or request.request_id(), request_id, is_unique=own_key is not None)
        received_ns = tensors["received_ns"].item() if "received_ns" in tensors else 0
        sink = TritonSink(sender, self._see, ReplyTensors(self._bytes_of, received_ns, params.n))
        self._responder.open(request_id, sink, stream=options.stream, delivery=delivery)
        if is_late:
            self._client.abort(request_id)

    def _abort(self, sender: pb_utils.InferenceResponseSender, tensors: dict[str, np.ndarray]) -> None:
        if len(tensors) > 1:
            raise InvalidRequest("abort must be the only input")
        for request_id in self._open.abort(read_string("abort", tensors["abort"])):
            self._client.abort(request_id)
        answer = Reply(Chunk([], []), [], 0, RequestOutput(0, finish_reason=FinishReason.CANCELLED))
        sender.send(
            make_response(ReplyTensors(self._bytes_of).arrays(answer)),
            flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )

    def _manage(self, sender: pb_utils.InferenceResponseSender, tensors: dict[str, np.ndarray]) -> None:
        if len(tensors) > 1:
            raise InvalidRequest("adapters must be the only input")
        command = read_adapter_command(read_string("adapters", tensors["adapters"]))
        request_id = self._client.manage_adapter(command.name, is_unload=command.is_unload)
        self._responder.open(request_id, TritonSink(sender, self._see, ReplyTensors(self._bytes_of)), stream=False)

    def _see(self, reply: Reply) -> None:
        if reply.last.finish_reason is not None:
            self._metrics.observe("llm_detokenize_seconds", reply.detokenize_seconds)
        if reply.is_final:
            self._open.forget(reply.last.request_id)
            self._watched.pop(reply.last.request_id, None)

    def _beat(self) -> None:
        self._metrics.publish(self._client.stats, is_up=self._client.is_up)
        self._pulse.increment(1)

    def _abort_cancelled(self) -> None:
        for request_id, sender in list(self._watched.items()):
            if sender.is_cancelled():
                self._client.abort(request_id)


class TritonMetrics:
    """Makes metrics on Triton's metrics port; they live as long as this object."""

    def __init__(self) -> None:
        self._families: dict[str, pb_utils.MetricFamily] = {}

    def gauge(self, name: str, description: str, labels: Mapping[str, str]) -> pb_utils.Metric:
        """Make one gauge."""
        return self._family(name, description, pb_utils.MetricFamily.GAUGE).Metric(labels=dict(labels))

    def counter(self, name: str, description: str, labels: Mapping[str, str]) -> pb_utils.Metric:
        """Make one counter."""
        return self._family(name, description, pb_utils.MetricFamily.COUNTER).Metric(labels=dict(labels))

    def _family(self, name: str, description: str, kind: int) -> pb_utils.MetricFamily:
        if name not in self._families:
            self._families[name] = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        return self._families[name]


class TritonSink:
    """Sends one request's replies through its response sender."""

    def __init__(
        self, sender: pb_utils.InferenceResponseSender, on_reply: Callable[[Reply], None], tensors: ReplyTensors
    ) -> None:
        self._sender = sender
        self._on_reply = on_reply
        self._tensors = tensors

    def send(self, reply: Reply) -> None:
        """Send a reply; the last one is flagged final."""
        self._on_reply(reply)
        if reply.is_error:
            code = triton_code(reply.last.error_code or "INTERNAL", reply.last.error or "the request failed")
            _send_error(self._sender, *code)
            return
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reply.is_final else 0
        self._sender.send(make_response(self._tensors.arrays(reply)), flags=flags)


def make_response(arrays: Mapping[str, np.ndarray]) -> pb_utils.InferenceResponse:
    """Return arrays as a response."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def _send_error(sender: pb_utils.InferenceResponseSender, code: str, message: str) -> None:
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

"""An instance that costs next to nothing: it answers every request with the same words, all streams at the same moment.

Knows KServe's streams by way of `gateway.wire`. Does not know what is measured. A process of its own: `python -m
scripts.benchmark.fake_model RATE` prints its port, then says RATE words a second on each stream, as many as the input
`max_tokens` says; a stream whose client is slow misses some. A message is as large as one of the engine's of one token.
"""

import asyncio
import sys
from dataclasses import dataclass

import uvloop

from gateway.address import bound_address, listen
from gateway.link import Hub, Link
from gateway.patience import Patience
from gateway.status import OK_TRAILERS, RESPONSE_HEADERS
from gateway.tensors import int_of, read_inputs
from gateway.wire.connection import Connection
from gateway.wire.events import DataReceived, Event, HeadersReceived, StreamReset
from gateway.wire.headers import encode_headers
from gateway.wire.messages import MessageReader, frame_message
from gateway.wire.stream import Stream
from gateway.wire.table import Role
from scripts.launcher.kserve import pb

MAX_MESSAGE_BYTES = 1 << 30
READY = b"\x08\x01"
HEADERS_BLOCK, TRAILERS_BLOCK = encode_headers(RESPONSE_HEADERS), encode_headers(OK_TRAILERS)


@dataclass(slots=True)
class Answer:
    """A stream, and how many words are still to be said on it."""

    stream: Stream
    num_left: int


class FakeInstance(Link):
    """One connection of a gateway; requests become answers in a list that all connections share."""

    def __init__(self, hub: Hub, answers: dict[Stream, Answer]) -> None:
        """Wait for the transport."""
        super().__init__(hub, Connection(Role.SERVER, hub.dirty), Patience())
        self._answers = answers
        self._readers: dict[Stream, MessageReader] = {}

    def handle(self, event: Event) -> None:
        """Act on one event."""
        if isinstance(event, HeadersReceived) and event.opens:
            self._readers[event.stream] = MessageReader(MAX_MESSAGE_BYTES)
        elif isinstance(event, DataReceived):
            self.connection.consume(event.stream, event.size)
            for _, body in self._readers[event.stream].feed(event.payload):
                self._answer(event.stream, body)
        elif isinstance(event, StreamReset):
            self._forget(event.stream)

    def lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the gateway has ended
        """Answer nobody any more."""
        for stream in list(self._readers):
            self._forget(stream)

    def retire(self, reason: str) -> None:
        """Nobody watches this connection."""

    def cut(self, reason: str) -> None:
        """Nobody watches this connection."""

    def _answer(self, stream: Stream, body: bytes) -> None:
        self.connection.outbox.send_headers(stream, HEADERS_BLOCK)
        num_words = int_of(read_inputs(body), "max_tokens")
        if num_words is not None:
            self._answers[stream] = Answer(stream, num_words)
            return
        stream.outbox.send_data(stream, frame_message(READY))  # a question whether it is ready, or an abort
        stream.outbox.finish(stream, TRAILERS_BLOCK)

    def _forget(self, stream: Stream) -> None:
        del self._readers[stream]
        self._answers.pop(stream, None)


def message(finish_reason: bytes) -> bytes:
    """Return a framed response with the tensors that the engine's have."""
    response = pb.ModelInferResponse(model_name="llm", model_version="1", id="")
    contents = {
        "text_output": ("BYTES", b"\x05\0\0\0 word"),
        "token_ids": ("INT32", b"\x07\0\0\0"),
        "finish_reason": ("BYTES", len(finish_reason).to_bytes(4, "little") + finish_reason),
        "token_index": ("INT32", b"\x09\0\0\0"),
        "prompt_tokens": ("INT32", b"\x05\0\0\0"),
        "completion_tokens": ("INT32", b"\x0a\0\0\0"),
    }
    for name, (datatype, raw) in contents.items():
        response.outputs.add(name=name, datatype=datatype, shape=[1])
        response.raw_output_contents.append(raw)
    return frame_message(pb.ModelStreamInferResponse(infer_response=response).SerializeToString())


async def speak(rate: float, hub: Hub, answers: dict[Stream, Answer]) -> None:
    """Say a word on every stream, `rate` times a second."""
    word, last = message(b""), message(b"length")
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + 1 / rate, loop.time())
        await asyncio.sleep(due - loop.time())
        for answer in list(answers.values()):
            stream = answer.stream
            if stream.queue:
                continue
            answer.num_left -= 1
            stream.outbox.send_data(stream, word if answer.num_left else last)
            if not answer.num_left:
                stream.outbox.finish(stream, TRAILERS_BLOCK)
                del answers[stream]
        hub.flush()


async def main(rate: float) -> None:
    """Serve until killed."""
    hub = Hub()
    answers: dict[Stream, Answer] = {}
    server = await listen("127.0.0.1:0", lambda: FakeInstance(hub, answers))
    print(bound_address(server), flush=True)
    await speak(rate, hub, answers)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))

"""What a request's client has been given so far, kept so that another instance can go on from there.

Knows encoded responses and requests of the model `llm`, and the few fields in them that matter. Does not know instances
or streams.

A tape is read only when an instance fails.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gateway.tensors import read_outputs
from gateway.wire import protobuf
from gateway.wire.messages import MessageReader
from gateway.wire.recording import Recording

MODEL = b"llm"
RESUME = b"resume_token_ids"
TEXT_PREFIX_BYTES = 4  # the length in front of an element of a BYTES tensor


class NotResumable(Exception):
    """A request that cannot go on elsewhere; the message says why."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a client has been given."""

    token_ids: tuple[int, ...]
    is_finished: bool  # the response with the reason has come, only the end of the stream has not


class Tape(Recording):
    """The responses that have gone to one request's client; to read the tokens out of each would cost 8 us."""

    def __init__(self) -> None:
        super().__init__()
        self.is_whole = True  # whether it ends with a message

    def take(self, piece: bytes, ends: bool = True) -> None:
        """Take the next piece that goes to the client; `ends` says whether it ends a message."""
        self.is_whole = ends
        self.add(piece)

    def read(self) -> Delivered:
        """Return what all of it says.

        Raises:
            NotResumable: it does not say which tokens were delivered, or they are of several sequences.
        """
        reader = MessageReader(max_bytes=2**32)
        messages = [body for payload in self.payloads() for _, body in reader.feed(payload)]
        tokens = b""
        reason = b""
        try:
            for message in messages:
                if len(reason) <= TEXT_PREFIX_BYTES:  # Triton may send an empty response behind the last one
                    outputs = read_outputs(message)
                    if "sequence_index" in outputs:
                        raise NotResumable("it has several sequences")
                    tokens += outputs["token_ids"]
                    reason = outputs["finish_reason"]
            return Delivered(struct.unpack(f"<{len(tokens) // 4}i", tokens), len(reason) > TEXT_PREFIX_BYTES)
        except (KeyError, struct.error, protobuf.MalformedMessage) as error:
            raise NotResumable(f"the responses do not say which tokens they hold: {error!r}") from error


def continuation(request: bytes, token_ids: tuple[int, ...]) -> bytes:
    """Return the fields that make an encoded request go on behind these tokens.

    Triton gives raw contents, in their order, to the inputs that have neither typed contents nor shared memory. So one
    more of both fits behind any request, save for one with typed contents, which must have no raw ones.

    Raises:
        NotResumable: the request is for another model, or goes on from somewhere itself.
    """
    try:
        fields = [(n, v) for n, v in protobuf.fields(request) if isinstance(v, bytes)]
        inputs = [dict(protobuf.fields(value)) for number, value in fields if number == protobuf.REQUEST_INPUTS]
    except protobuf.MalformedMessage as error:
        raise NotResumable(f"the request cannot be read: {error}") from error
    if [v for n, v in fields if n == protobuf.REQUEST_MODEL][-1:] != [MODEL]:
        raise NotResumable("it is for another model")
    if RESUME in [tensor.get(protobuf.TENSOR_NAME) for tensor in inputs]:
        raise NotResumable(f"the client itself gives {RESUME.decode()}")
    if any(protobuf.TENSOR_CONTENTS in tensor for tensor in inputs):
        return protobuf.encode_int32_input(RESUME, token_ids, typed=True)
    return protobuf.encode_int32_input(RESUME, token_ids, typed=False)

"""What is kept of one request, so that it can be sent again or go on at another instance.

Knows the request's bytes and what its client was given. Does not know instances, stages or streams.

Invariants:
1. Its bytes are kept until its first response. Small ones are kept on, for their id.
2. While it has a `tape`, its bytes and all that was delivered are known.
"""

from gateway.tape import Delivered, NotResumable, Tape, continuation
from gateway.wire import protobuf
from gateway.wire.messages import frame_message
from gateway.wire.recording import MAX_PACKED_BYTES

MAX_RESUMABLE_BYTES = 1024 * 1024  # of a request that is kept while it is answered
MAX_ID_BYTES = 64 * 1024  # of an answered request's bytes, kept for the id in a late error; of larger ones only the id


class RequestMemory:
    """A request's bytes, and the tape of its answer where it has one."""

    __slots__ = ("complete", "continuation", "kept", "kept_bytes", "tape")

    def __init__(self) -> None:
        """Begin with no bytes."""
        self.continuation = b""  # fields that make it go on where another instance left it
        self.kept: list[bytes] | None = []
        self.kept_bytes = 0
        self.complete = False
        self.tape: Tape | None = None

    def keep(self, payload: bytes, complete: bool) -> None:
        """Take more of the request's bytes."""
        self.complete = complete
        self.kept_bytes += len(payload)
        if self.kept is not None:
            self.kept.append(payload)

    def body(self) -> bytes:
        """Return what is there."""
        kept = self.kept
        if kept is None:
            return b""
        return kept[0] if len(kept) == 1 else b"".join(kept)

    def message(self, extra: bytes) -> bytes:
        """Return the framed message that is sent: what is there, with the encoded fields `extra` appended."""
        return frame_message(self.body() + self.continuation + extra)

    @property
    def delivered_mark(self) -> tuple[int, int] | None:
        """What grows whenever something is delivered; None without a tape."""
        return None if self.tape is None else self.tape.mark

    def what_follows(self) -> tuple[Delivered, bytes]:
        """Return what has been delivered, and the fields that make this request go on behind it.

        Raises:
            NotResumable: it cannot.
        """
        if self.tape is None:
            raise NotResumable("too much was asked or answered to keep it")
        delivered = self.tape.read()
        return delivered, continuation(self.body(), delivered.token_ids)

    def record(self, piece: bytes, ends: bool) -> None:
        """Note what goes to the client, and whether it ends a message; too much of it is forgotten."""
        if self.tape is None:
            return
        self.tape.take(piece, ends)
        if self.tape.packed_bytes > MAX_PACKED_BYTES:
            self.forget_tape()

    def forget_tape(self) -> None:
        """Give up going on elsewhere."""
        self.tape = None

    def shed(self, has_id: bool) -> None:
        """Keep less, now that there is an answer; `has_id` says whether the bytes are a request with an id."""
        if self.kept_bytes > MAX_RESUMABLE_BYTES:
            self.forget_tape()
        if self.kept_bytes > MAX_ID_BYTES and self.tape is None:
            found = protobuf.request_id(self.body()) if has_id else b""
            self.kept = [protobuf.encode_field(protobuf.REQUEST_ID, found)]

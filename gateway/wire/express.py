"""The hot path: DATA frames that hold exactly one gRPC message go on with only their stream id rewritten.

Knows bytes, windows and the lanes that were opened for it. Does not know requests, instances or metrics.

A message that begins with `STREAM_ERROR_TAG` is an error, which is not simple: the request may go on elsewhere.

A stream is in `lanes` only while it stands at a message boundary and nothing else is under way on its target. A frame
that does not fit (not whole, not one message, flags set, a window or the credit too small, the target's transport full)
closes the lane and is left to the ordinary path, which opens it again. Adjacent frames to one connection leave as one
slice: ids are rewritten in the receive buffer itself.
"""

from struct import Struct

from gateway.wire.frames import pack_window_update
from gateway.wire.protobuf import STREAM_ERROR_TAG
from gateway.wire.stream import Stream

LANE_CREDIT = 16384  # also the largest frame a lane takes, so that it never exceeds a peer's MAX_FRAME_SIZE
TAPE_BYTES = 32 * 1024

_HEAD = Struct(">IBIBI")  # frame length << 8 | type, flags, stream id; message: compressed, length
_ID = Struct(">I")


class Tally:
    """How much went through."""

    __slots__ = ("messages", "num_bytes")

    def __init__(self) -> None:
        self.messages = 0
        self.num_bytes = 0


def forward(  # noqa: C901 - one loop, so that a frame costs no call
    buffer: bytearray, pos: int, end: int, lanes: dict[int, Stream], tally: Tally
) -> int:
    """Relay frames of `buffer[pos:end]` for as long as they are simple; return where the first other frame begins."""
    unpack, pack_into, find = _HEAD.unpack_from, _ID.pack_into, lanes.get
    start = first = pos
    last = end - 14
    count = 0
    box = None
    while pos <= last:
        word, flags, stream_id, _, length = unpack(buffer, pos)
        source = find(stream_id)
        if source is None:
            break
        length += 5
        if word != length << 8 or flags:
            del lanes[stream_id]
            break
        after = pos + 9 + length
        if after > end:
            break
        if length > 5 and buffer[pos + 14] == STREAM_ERROR_TAG:
            del lanes[stream_id]
            break
        target = source.target
        if target is None:
            raise RuntimeError(f"stream {stream_id} is in the express lane without a target")
        outbox = target.outbox
        if length > target.send_window or length > outbox.window or outbox.paused:
            del lanes[stream_id]
            break
        if length > source.lane_credit and not _renew(source, length):
            del lanes[stream_id]
            break
        if outbox is not box:
            if box is not None:
                box.put(buffer[start:pos])
            box = outbox
            start = pos
        if source.tape is not None:
            source.tape += buffer[pos + 9 : after]
        source.lane_credit -= length
        target.send_window -= length
        outbox.window -= length
        pack_into(buffer, pos + 5, target.stream_id)
        count += 1
        pos = after
    if box is not None:
        box.put(buffer[start:pos])
        tally.messages += count
        tally.num_bytes += pos - first - 9 * count
    return pos


def _renew(source: Stream, length: int) -> bool:
    """Give the peer back what has passed, and the lane its full credit; return whether `length` bytes may pass now."""
    passed = source.lane_start - source.lane_credit + source.consumed
    if not passed or length > LANE_CREDIT or (source.tape is not None and len(source.tape) >= TAPE_BYTES):
        return False
    source.recv_window += source.consumed
    source.consumed = 0
    source.lane_start = source.lane_credit = min(LANE_CREDIT, source.recv_window)
    source.outbox.put(pack_window_update(source.stream_id, passed))
    return length <= source.lane_credit

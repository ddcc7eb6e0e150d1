"""The hot path: DATA frames that hold exactly one gRPC message go on with only their stream id rewritten.

Knows bytes, windows and the lanes that were opened for it. Does not know requests, instances or metrics.

A message that begins with `STREAM_ERROR_TAG` is an error, which is not simple: the request may go on elsewhere.

A stream is in `lanes` only while it stands at a message boundary and nothing else is under way on its target. A frame
that does not fit (not whole, not one message with something in it, flags set, a window or the credit too small, the
target's transport full) closes the lane and is left to the ordinary path, which opens it again. Each frame is copied
once, with its new stream id: its target's transport and its recording, where there is one, share the copy.

A lane is wide, for one call, where its target's windows are at least all the bytes at hand: as nothing read now can
exceed them, its frames are held against its credit alone, and the windows are told at the end.
"""

from struct import Struct

from gateway.wire.frames import pack_window_update
from gateway.wire.protobuf import STREAM_ERROR_TAG
from gateway.wire.recording import MAX_PACKED_BYTES
from gateway.wire.stream import Stream

LANE_CREDIT = 16384  # also the largest frame a lane takes, so that it never exceeds a peer's MAX_FRAME_SIZE

_HEAD = Struct(">IBIxIB")  # frame length << 8 | type, flags, stream id; message: (compressed), length, first byte
_UNPACK, _PACK_INTO = _HEAD.unpack_from, Struct(">I").pack_into
HEAD_SIZE = 15  # bytes of it
EMPTY = 5  # bytes of a message that is no more than its prefix


class Tally:
    """How much went through."""

    __slots__ = ("messages", "num_bytes")

    def __init__(self) -> None:
        self.messages = 0
        self.num_bytes = 0


def forward(buffer: bytearray, pos: int, end: int, lanes: dict[int, Stream], tally: Tally) -> int:
    """Relay frames of `buffer[pos:end]` for as long as they are simple; return where the first other frame begins.

    One loop, so that a frame costs no call.
    """
    unpack, pack_into = _UNPACK, _PACK_INTO
    raw = buffer  # compiled: where its bytes lie
    first = pos
    last = end - HEAD_SIZE
    count = 0
    wide: list[Stream] = []
    while pos <= last:
        word, flags, stream_id, length, tag = unpack(buffer, pos)
        source = lanes.get(stream_id)
        if source is None:
            break
        length += 5
        if word != length << 8 or flags or tag == STREAM_ERROR_TAG or length == EMPTY:
            del lanes[stream_id]
            break
        after = pos + 9 + length
        if after > end:
            break
        if length > source.lane_credit and not _renew(source, length):
            del lanes[stream_id]
            break
        if not source.is_wide and not _may_pass(source, length, end - first, wide):
            del lanes[stream_id]
            break
        pack_into(buffer, pos + 5, source.lane_id)
        frame = raw[pos:after]
        source.lane_chunks.append(frame)
        recording = source.recording
        if recording is not None:
            recording.frames.append(frame)
        source.lane_credit -= length
        count += 1
        pos = after
    for source in wide:
        source.is_wide = False
        _tell(source, source.lane_told - source.lane_credit)
    tally.messages += count
    tally.num_bytes += pos - first - 9 * count
    return pos


def _may_pass(source: Stream, length: int, at_hand: int, wide: list[Stream]) -> bool:
    """Return whether `length` bytes may go to the target, which learns of them now, or at the end if the lane is wide.

    Args:
        source: whose lane is not wide as far as is known.
        length: of the frame's payload.
        at_hand: bytes that can go anywhere at all before the end.
        wide: gets the source if its lane is wide.
    """
    target = source.target
    if target is None:
        raise RuntimeError(f"stream {source.stream_id} is in the express lane without a target")
    outbox = target.outbox
    if length > target.send_window or length > outbox.window or outbox.paused:
        return False
    if not outbox.chunks:
        outbox.dirty.append(outbox)
    if at_hand <= target.send_window and at_hand <= outbox.window:
        source.is_wide = True
        wide.append(source)
    else:
        _tell(source, length)
    return True


def _tell(source: Stream, num_bytes: int) -> None:
    """Take bytes that pass from the windows of the target."""
    target = source.target
    if target is None:
        raise RuntimeError(f"stream {source.stream_id} is in the express lane without a target")
    target.send_window -= num_bytes
    target.outbox.window -= num_bytes
    source.lane_told -= num_bytes


def _renew(source: Stream, length: int) -> bool:
    """Give the peer back what has passed, and the lane its full credit; return whether `length` bytes may pass now."""
    in_lane = source.lane_start - source.lane_credit
    untold = source.lane_told - source.lane_credit
    passed = in_lane + source.consumed
    recording = source.recording
    if not passed or length > LANE_CREDIT or (recording is not None and recording.packed_bytes > MAX_PACKED_BYTES):
        return False
    if recording is not None:
        recording.count(in_lane)
    source.recv_window += source.consumed
    source.consumed = 0
    source.lane_start = source.lane_credit = min(LANE_CREDIT, source.recv_window)
    source.lane_told = source.lane_credit + untold
    source.outbox.put(pack_window_update(source.stream_id, passed))
    return length <= source.lane_credit

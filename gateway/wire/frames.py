"""The layout of HTTP/2 frames (RFC 9113, sections 4 and 6).

Knows bytes. Does not know whether a frame is allowed where it stands.
"""

from enum import IntEnum
from struct import Struct

from gateway.wire.faults import ConnectionFault, ErrorCode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE = 9
DEFAULT_MAX_FRAME_SIZE = 16384
DEFAULT_WINDOW = 65535
MAX_WINDOW = 2**31 - 1
MAX_STREAM_ID = 2**31 - 1

HEADER = Struct(">IBI")  # length << 8 | type, flags, stream id
SETTING = Struct(">HI")
WORD = Struct(">I")
GOAWAY = Struct(">II")
_PACK = HEADER.pack


class FrameType(IntEnum):
    """Frame types."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


DATA, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 8, 9  # plain numbers are faster

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20


class Setting(IntEnum):
    """Identifiers of settings."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


def pack_frame(frame_type: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    """Return one frame."""
    return _PACK(len(payload) << 8 | frame_type, flags, stream_id) + payload


def pack_settings(settings: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return pack_frame(FrameType.SETTINGS, 0, 0, b"".join(SETTING.pack(*pair) for pair in settings.items()))


def pack_window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return pack_frame(WINDOW_UPDATE, 0, stream_id, WORD.pack(increment))


def pack_reset(stream_id: int, code: int) -> bytes:
    """Return a RST_STREAM frame."""
    return pack_frame(RST_STREAM, 0, stream_id, WORD.pack(code))


def pack_ping(payload: bytes, ack: bool = False) -> bytes:
    """Return a PING frame with its eight bytes."""
    return pack_frame(FrameType.PING, ACK if ack else 0, 0, payload)


def pack_goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """Return a GOAWAY frame."""
    return pack_frame(FrameType.GOAWAY, 0, 0, GOAWAY.pack(last_stream_id, code) + debug)


def pack_headers(stream_id: int, block: bytes, end_stream: bool, max_frame_size: int) -> bytes:
    """Return a header block as HEADERS and as many CONTINUATION frames as its size needs."""
    end = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return pack_frame(HEADERS, end | END_HEADERS, stream_id, block)
    pieces = [block[start : start + max_frame_size] for start in range(0, len(block), max_frame_size)]
    frames = [pack_frame(HEADERS, end, stream_id, pieces[0])]
    frames += [pack_frame(FrameType.CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]]
    return b"".join([*frames, pack_frame(FrameType.CONTINUATION, END_HEADERS, stream_id, pieces[-1])])


def strip_padding(flags: int, payload: bytes) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding.

    Raises:
        ConnectionFault: the padding is as long as the payload or longer.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def parse_settings(payload: bytes) -> dict[int, int]:
    """Return the pairs of a SETTINGS frame, known values checked: the last of each identifier.

    Of several header table sizes it is the smallest, which an encoder has to confirm (RFC 7541, section 4.2).

    Raises:
        ConnectionFault: the length or a value is not allowed.
    """
    if len(payload) % SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    settings: dict[int, int] = {}
    for identifier, value in SETTING.iter_unpack(payload):
        _check_setting(identifier, value)
        known = settings.get(identifier, value)
        settings[identifier] = min(known, value) if identifier == Setting.HEADER_TABLE_SIZE else value
    return settings


def _check_setting(identifier: int, value: int) -> None:
    if identifier == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE of {value}")
    if identifier == Setting.MAX_FRAME_SIZE and not DEFAULT_MAX_FRAME_SIZE <= value < 2**24:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE of {value}")
    if identifier == Setting.ENABLE_PUSH and value > 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")

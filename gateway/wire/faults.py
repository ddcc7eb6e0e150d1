"""What a peer may do wrong, and the HTTP/2 error code for it (RFC 9113, section 7).

WireFault
|- ConnectionFault   answered with GOAWAY; the connection ends
`- StreamFault       answered with RST_STREAM; the connection goes on
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """HTTP/2 error codes."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class WireFault(Exception):
    """A peer broke the protocol or a limit; the message is meant for a log or GOAWAY's debug data."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        """Name the code that goes to the peer and what was wrong."""
        super().__init__(message)
        self.code = code
        self.message = message


class ConnectionFault(WireFault):
    """A fault after which nothing on the connection can be trusted."""


class StreamFault(WireFault):
    """A fault of one stream."""

    def __init__(self, stream_id: int, code: ErrorCode, message: str) -> None:
        """Name the stream, the code and what was wrong."""
        super().__init__(code, message)
        self.stream_id = stream_id

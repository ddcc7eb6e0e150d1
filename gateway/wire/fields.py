"""Which header lists are well formed (RFC 9113, section 8): what a malformed one is called, and nothing else."""

from functools import lru_cache

from gateway.wire.headers import Headers

CACHED_LISTS = 256
REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority", b":protocol"})
STATUS = b":status"
REQUIRED_PSEUDO = (b":method", b":scheme", b":path")
CONNECTION_FIELDS = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
NAME_CHARACTERS = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
FORBIDDEN_IN_VALUES = (b"\0", b"\r", b"\n")


@lru_cache(maxsize=CACHED_LISTS)
def fault_of_request(headers: Headers) -> str | None:
    """Return what is wrong with the header list of a request, or None."""
    fields = dict(headers)
    for name in REQUIRED_PSEUDO:
        if not fields.get(name):
            return f"{name.decode()} is missing or empty"
    num_pseudo = sum(name[:1] == b":" for name, _ in headers)
    return _fault_of_pseudo(headers, num_pseudo) or _fault_of_fields(headers[num_pseudo:]) or _fault_of_length(headers)


def fault_of_trailers(headers: Headers) -> str | None:
    """Return what is wrong with trailers, or None."""
    return _fault_of_fields(headers)


@lru_cache(maxsize=CACHED_LISTS)
def fault_of_response(headers: Headers) -> str | None:
    """Return what is wrong with the header list of a response, or with its trailers, or None."""
    has_status = headers[:1] != () and headers[0][0] == STATUS
    return _fault_of_fields(headers[1:] if has_status else headers)


def is_interim(headers: Headers) -> bool:
    """Whether a response's headers have a status of 1xx: the real ones are still to come (RFC 9113, section 8.1)."""
    return headers[:1] != () and headers[0][0] == STATUS and headers[0][1][:1] == b"1"


@lru_cache(maxsize=CACHED_LISTS)
def content_length(headers: Headers) -> int | None:
    """Return how much DATA a well-formed request announces, or None where it does not say."""
    return next((int(value) for name, value in headers if name == b"content-length"), None)


def _fault_of_pseudo(headers: Headers, num_pseudo: int) -> str | None:
    names = {name for name, _ in headers[:num_pseudo]}
    if any(name[:1] != b":" for name in names):
        return "a pseudo-header after a regular one"
    if len(names) < num_pseudo:
        return "a pseudo-header comes twice"
    if not names <= REQUEST_PSEUDO:
        return "an unknown pseudo-header"
    return None


def _fault_of_fields(headers: Headers) -> str | None:
    for name, value in headers:
        if not name or not NAME_CHARACTERS.issuperset(name):
            return f"the header name {name[:40]!r} is not allowed"
        if name in CONNECTION_FIELDS or (name == b"te" and value != b"trailers"):
            return f"the header {name.decode()} is not allowed in HTTP/2"
        if any(character in value for character in FORBIDDEN_IN_VALUES):
            return f"the header {name.decode()} has a forbidden character"
    return None


def _fault_of_length(headers: Headers) -> str | None:
    values = {value for name, value in headers if name == b"content-length"}
    if not values or (len(values) == 1 and values.copy().pop().isdigit()):
        return None
    return "the content length is no number"

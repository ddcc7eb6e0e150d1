"""TLS contexts for HTTP/2: the gateway's own port, and its connections to instances.

Knows files and the ssl module. Does not know configuration or connections. Both sides offer `h2` by ALPN, and refuse a
peer that does not choose it, since nothing else is spoken here; TLS 1.2 is the oldest version (RFC 9113, section 9.2).
"""

import ssl
from pathlib import Path
from typing import Any

PROTOCOL = "h2"
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; all others are on HTTP/2's block list


class TlsError(Exception):
    """A certificate, key or authority that cannot be used."""


class RenewableContext(ssl.SSLContext):
    """The context of a port, in whose place another can be put: connections to come are made with `current`."""

    current: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Make a connection's TLS; asyncio and uvloop do so for each that is accepted."""
        return self.current.wrap_bio(*arguments, **options)


def renewable(context: ssl.SSLContext) -> RenewableContext:
    """Return a context that makes connections with this one until another is put in its place."""
    made = RenewableContext(ssl.PROTOCOL_TLS_SERVER)
    made.current = context
    return made


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Return the context of a port; with `client_ca`, clients must show a certificate that it signed.

    Raises:
        TlsError: a file cannot be read or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, certificate, key, client_ca)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return the context of connections to an instance, whose certificate `ca`, else the system's store, must verify.

    Raises:
        TlsError: a file cannot be read or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, certificate, key, ca)
    if ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def speaks_http2(ssl_object: Any) -> bool:
    """Whether a connection is not TLS, or TLS whose peer chose HTTP/2."""
    return ssl_object is None or ssl_object.selected_alpn_protocol() == PROTOCOL


def _load(context: ssl.SSLContext, certificate: Path | None, key: Path | None, ca: Path | None) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([PROTOCOL])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        if ca is not None:
            context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (certificate, key, ca) if path is not None)
        raise TlsError(f"{files}: {error}") from error

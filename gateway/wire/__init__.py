"""HTTP/2 and gRPC framing as pure state: bytes in, events out; no sockets, no clock, no policy."""

from gateway.request cimport Request
from gateway.wire.outbox cimport Outbox
from gateway.wire.stream cimport Stream

cdef class Turns:
    cdef public Request holder
    cdef public object held, _requests
    cdef public Outbox _outbox
    cdef public Stream _stream
    cpdef take(self, Request request, list pieces)
    cpdef _send(self, Request request, piece, bint ends)

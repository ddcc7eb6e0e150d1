cimport cython
from gateway.call cimport Call
from gateway.link cimport Link
from gateway.exchange cimport Exchange
from gateway.wire.events cimport DataReceived, HeadersReceived, StreamReset

cdef class ClientLink(Link):
    cdef public Call _call
    cdef public set exchanges
    cdef public object dispatcher, terms, _clients, _headers
    cdef public long num_buffered
    cdef public dict _buffered
    cdef public bint _draining, _told
    @cython.locals(data=DataReceived, headers=HeadersReceived, owner=Exchange)
    cpdef handle(self, event)
    cpdef note_buffered(self, Exchange exchange, long size)
    cpdef forget(self, Exchange exchange)
    @cython.locals(call=Call, exchange=Exchange)
    cpdef _open(self, HeadersReceived event)
    cpdef Call _call_of(self, headers)
    cpdef _close_if_drained(self)

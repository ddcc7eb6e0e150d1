cimport cython
from gateway.exchange cimport Exchange
from gateway.instance cimport Instance
from gateway.routing.asked cimport prefill_weight
from gateway.upstream cimport UpstreamLink
from gateway.request_memory cimport RequestMemory
from gateway.wire.messages cimport MessageCutter, is_message
from gateway.wire.stream cimport Stream
from gateway.wire.events cimport DataReceived, HeadersReceived

cdef long ANSWER, ANSWERING, CLOSED, DONE, MAX_ID_BYTES, SEND, SENT, STREAM_ERROR_TAG, WAITING
cdef list NEXT
cdef tuple OK_TRAILERS

cdef class Request(RequestMemory):
    cdef public double arrived_at, line_since, prefill
    cdef public long long arrived_ns, first_ns, routed_ns
    cdef public long attempts, concurrent, copies, deaths, owed, stage
    cdef public str copy_key, key
    cdef public set tried
    cdef public MessageCutter cutter
    cdef public Exchange exchange
    cdef public Stream stream
    cdef public UpstreamLink link
    cdef public Instance instance
    cdef public object hedge, observer, screen, span
    cpdef step(self, long step)
    cpdef _refuse(self, long step)
    cpdef add(self, bytes payload, bint complete)
    cpdef attach(self, Instance instance, UpstreamLink link, Stream stream)
    cpdef _begin_answer(self, Stream stream)
    cpdef next_key(self)
    cpdef send_kept(self)
    cpdef send_message(self, bytes extra)
    @cython.locals(link=UpstreamLink, stream=Stream, instance=Instance)
    cpdef detach(self, code=*)
    cpdef on_headers(self, HeadersReceived event)
    cpdef on_data(self, DataReceived event)
    cpdef _take_message(self, bytes message)
    cpdef _take_pieces(self, bytes payload)
    cpdef written(self, long size)
    cpdef _open_lane(self)
    cpdef leave_lane(self)
    cpdef _note_answer(self)
    cpdef _on_end(self, HeadersReceived event)
    cpdef _send(self, bytes payload, bint complete)

from gateway.wire.frames cimport pack_reset, pack_window_update
from gateway.wire.outbox cimport Outbox
from gateway.wire.stream cimport Stream

cdef long CLOSED, MAX_STREAM_ID

cdef class StreamTable:
    cdef public Outbox outbox
    cdef public long stream_window, peer_max_streams, _highest, _next_id
    cdef public dict streams, lanes, _reset_ids
    cdef public bint is_closed, is_server
    cpdef bint can_open(self)
    cpdef consume(self, Stream stream, long size)
    cpdef enter_lane(self, Stream stream, Stream target)
    cpdef leave_lane(self, Stream stream)
    cpdef reset(self, Stream stream, code)
    cpdef release(self, Stream stream)
    cpdef Stream open_stream(self)
    cpdef sweep(self)
    cpdef Stream _add(self, long stream_id)
    cpdef _drop(self, Stream stream)
    cpdef _remember_reset(self, long stream_id)

from gateway.tape cimport Tape
from gateway.wire.messages cimport frame_message

cdef class RequestMemory:
    cdef public bytes continuation
    cdef public list kept
    cdef public long kept_bytes
    cdef public bint complete
    cdef public Tape tape
    cpdef keep(self, bytes payload, bint complete)
    cpdef bytes body(self)
    cpdef bytes message(self, bytes extra)
    cpdef record(self, bytes piece, bint ends)
    cpdef shed(self, bint has_id)

from gateway.wire.recording cimport Recording

cdef class Stream:
    cdef public long stream_id, send_window, recv_window, consumed, lane_credit, lane_start, lane_told, lane_id, state
    cdef public list lane_chunks
    cdef public bint is_wide
    cdef public object outbox, queue, announced, owner
    cdef public bytes ending
    cdef public Stream target
    cdef public Recording recording
    cpdef wait(self, piece, owner, bint first=*)
    cpdef move(self, long move)
    cpdef refuse(self, long move)
    cpdef bint can_send(self)

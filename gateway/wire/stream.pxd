from gateway.wire.recording cimport Recording

cdef class Stream:
    cdef public long stream_id, send_window, recv_window, consumed, lane_credit, lane_start
    cdef public object outbox, state, queue, ending, announced, owner
    cdef public Stream target
    cdef public Recording recording
    cpdef wait(self, piece, owner, bint first=*)
    cpdef move(self, move)

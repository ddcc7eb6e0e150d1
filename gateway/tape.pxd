from gateway.wire.recording cimport Recording

cdef class Tape(Recording):
    cdef public bint is_whole
    cpdef take(self, piece, bint ends=*)

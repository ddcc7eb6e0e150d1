cdef class Tape:
    cdef public bytearray raw
    cdef public list packed
    cdef public long packed_bytes
    cdef public bint is_whole
    cpdef add(self, piece, bint ends=*)

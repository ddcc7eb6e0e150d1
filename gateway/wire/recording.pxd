cdef class Recording:
    cdef public list frames, packed
    cdef public long num_bytes, packed_bytes
    cpdef add(self, payload)
    cpdef count(self, long num_bytes)

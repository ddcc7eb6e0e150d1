cdef double BYTES_PER_REQUEST

cpdef double prefill_weight(long num_bytes) except? -1

cdef class Asked:
    cdef public object tried, session
    cdef public tuple prefix

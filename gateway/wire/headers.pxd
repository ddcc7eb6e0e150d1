cdef class HeaderDecoder:
    cdef public long max_list_bytes
    cdef public object _decoder
    cdef public dict known

cdef class MessageReader:
    cdef public long max_bytes
    cdef public bytearray partial
    cpdef list feed(self, bytes payload)

cdef class MessageCutter:
    cdef public object stop_byte, stopped_at
    cdef public bytearray partial
    cdef public long missing

cimport cython

@cython.locals(size=Py_ssize_t)
cpdef bint is_message(bytes payload, long stop_byte) except -1

@cython.locals(size=Py_ssize_t)
cpdef bytes whole_message(bytes payload, long long max_bytes)
cpdef bytes frame_message(bytes body, int compressed=*)

cdef class MessageReader:
    cdef public long max_bytes
    cdef public bytearray partial
    cpdef list feed(self, bytes payload)

cdef class MessageCutter:
    cdef public object stop_byte, stopped_at
    cdef public bytes partial
    cdef public long missing
    @cython.locals(pieces=list, count=long, whole=Py_ssize_t, num_whole=long, length=Py_ssize_t)
    cpdef tuple feed(self, bytes payload)
    @cython.locals(pos=Py_ssize_t, count=long, length=Py_ssize_t)
    cpdef tuple _scan(self, bytes payload)

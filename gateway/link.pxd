from gateway.wire.connection cimport Connection

cdef class Hub:
    cdef public list dirty
    cpdef flush(self)

cdef class Link:
    cdef public Hub hub
    cdef public Connection connection
    cdef public object transport, loop, vigil, _closing_since
    cpdef handle(self, event)
    cpdef get_buffer(self, sizehint)
    cpdef buffer_updated(self, long nbytes)
    cpdef write(self)

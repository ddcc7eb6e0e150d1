cimport cython
from gateway.wire.connection cimport Connection
from gateway.wire.outbox cimport Outbox

cdef class Hub:
    cdef public list dirty
    cdef public object _call_soon
    cdef public bint _is_due
    cpdef flush_soon(self)
    @cython.locals(batch=list, outbox=Outbox)
    cpdef flush(self)

cdef class Link:
    cdef public Hub hub
    cdef public Connection connection
    cdef public object transport, loop, vigil, _clock, _closing_since
    cpdef handle(self, event)
    @cython.locals(tail=bytes)
    cpdef get_buffer(self, sizehint)
    @cython.locals(end=Py_ssize_t, now=double)
    cpdef buffer_updated(self, long nbytes)
    @cython.locals(outbox=Outbox, released=list)
    cpdef write(self)

cimport cython
from gateway.call cimport Call
from gateway.observe.meters cimport Meters
from gateway.request cimport Request

cdef class Observation:
    cdef public object journal, tracing, recent, recent_first
    cdef public Meters _meters
    cdef public bint watches_some, _logs
    cdef public double _sample, _credit
    cpdef arrived(self, Request request)
    @cython.locals(call=Call, came=longlong)
    cpdef ended(self, Request request, str instance, str outcome)
    @cython.locals(call=Call)
    cpdef upstream_block(self, Request request, bytes scheme, bytes authority)

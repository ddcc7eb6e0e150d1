cimport cython
from gateway.entrance cimport Entrance
from gateway.exchange cimport Exchange
from gateway.link cimport Hub
from gateway.observe.observation cimport Observation
from gateway.request cimport Request
from gateway.upstream cimport UpstreamLink

cdef class Dispatcher:
    cdef public dict instances, _line
    cdef public long long max_request_bytes
    cdef public Entrance _entrance
    cdef public Hub _hub
    cdef public Observation observation
    cdef public object config, _metrics, _loop, router, guard, _seat, _gate, _hedges, _keys
    cpdef submit(self, Request request)
    cpdef exchange_ended(self, Exchange exchange)
    cpdef delivered(self, long num_messages, long num_bytes)
    cpdef first_answer(self, Request request)
    cpdef succeeded(self, Request request, trailers, code)
    cpdef attempt_failed(self, Request request, failure, code=*)
    cpdef _go_on(self, Request request, failure, code)
    cpdef _conclude(self, Request request, str outcome, code)
    cpdef _note_seconds(self, Request request)
    cpdef _choose(self, Request request, double now)
    cpdef _place(self, Request request)
    @cython.locals(link=UpstreamLink)
    cpdef _send(self, Request request, instance, double now)
    cpdef _ended(self, Request request, str instance, str outcome)
    cpdef _leave_line(self, Request request)

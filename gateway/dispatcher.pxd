from gateway.exchange cimport Exchange
from gateway.request cimport Request

cdef class Dispatcher:
    cdef public dict instances, _line
    cdef public long long max_request_bytes
    cdef public object config, _hub, _metrics, _loop, router, observation, _entrance, guard, _gate, _hedges, _keys
    cpdef submit(self, Request request)
    cpdef exchange_ended(self, Exchange exchange)
    cpdef delivered(self, long num_messages, long num_bytes)
    cpdef first_answer(self, Request request)
    cpdef succeeded(self, Request request, trailers, code)
    cpdef attempt_failed(self, Request request, failure, code=*)
    cpdef _conclude(self, Request request, str outcome, code)
    cpdef _note_seconds(self, Request request)
    cpdef _choose(self, Request request)
    cpdef _place(self, Request request)
    cpdef _send(self, Request request, instance)
    cpdef _ended(self, Request request, str instance, str outcome)
    cpdef _leave_line(self, Request request)

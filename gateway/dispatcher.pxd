cimport cython
from gateway.call cimport Call
from gateway.entrance cimport Entrance
from gateway.exchange cimport Exchange
from gateway.facts cimport engine_facts
from gateway.hedges cimport Hedges
from gateway.instance cimport Instance
from gateway.link cimport Hub
from gateway.metrics cimport Metrics
from gateway.observe.observation cimport Observation
from gateway.request cimport Request
from gateway.routing.asked cimport Asked
from gateway.routing.candidates cimport Candidate
from gateway.routing.policy cimport Policy
from gateway.routing.router cimport Router
from gateway.upstream cimport UpstreamLink

cdef long CLOSED, DONE, END, RETRY, SENT, WAITING

cdef class Dispatcher:
    cdef public dict instances, _line
    cdef public long long max_request_bytes
    cdef public Entrance _entrance
    cdef public Hub _hub
    cdef public Observation observation
    cdef public Metrics _metrics
    cdef public Router router
    cdef public Hedges _hedges
    cdef public str _keys
    cdef public long long _num_keys
    cdef public bint _resumes
    cdef public object config, _loop, _clock, _flush, guard, _gate, _seat
    cpdef _use(self, config)
    @cython.locals(call=Call)
    cpdef submit(self, Request request)
    cpdef exchange_ended(self, Exchange exchange)
    cpdef delivered(self, long num_messages, long num_bytes)
    @cython.locals(link=UpstreamLink)
    cpdef first_answer(self, Request request)
    cpdef _finish(self, Request request, trailers, code)
    cpdef succeeded(self, Request request, trailers, code)
    cpdef attempt_failed(self, Request request, failure, code=*)
    cpdef _go_on(self, Request request, failure, code)
    cpdef _conclude(self, Request request, str outcome, code)
    cpdef _note_seconds(self, Request request)
    cpdef _choose(self, Request request, double now)
    @cython.locals(policy=Policy)
    cpdef _asked(self, Request request)
    @cython.locals(each=Instance, candidate=Candidate, candidates=list)
    cpdef _instance_for(self, Asked asked, double now)
    @cython.locals(instance=Instance, asked=Asked, now=double)
    cpdef _place(self, Request request)
    @cython.locals(link=UpstreamLink, call=Call)
    cpdef _send(self, Request request, Instance instance, Asked asked, double now)
    cpdef _ended(self, Request request, str instance, str outcome)
    cpdef _leave_line(self, Request request)

cimport cython
from gateway.link cimport Link
from gateway.wire.events cimport DataReceived, HeadersReceived, StreamReset
from gateway.wire.express cimport Tally
from gateway.wire.stream cimport Stream

cdef class Pool:
    cdef public object hub, name, route, _failed, _known_limit
    cdef public list links
    cdef public Tally tally
    cdef public set _connecting
    cdef public bint _is_retired
    @cython.locals(link=UpstreamLink)
    cpdef UpstreamLink acquire(self)

cdef class UpstreamLink(Link):
    cdef public str name, _reason
    cdef public bint is_draining
    cdef public object _gone
    cpdef bint can_open(self)
    cpdef Stream open(self, bytes block, owner)
    @cython.locals(data=DataReceived, headers=HeadersReceived, padding=long)
    cpdef handle(self, event)
    cpdef check_idle(self)

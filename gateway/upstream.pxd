from gateway.link cimport Link
from gateway.wire.stream cimport Stream

cdef class UpstreamLink(Link):
    cdef public str name, _reason
    cdef public bint is_draining
    cdef public object _gone
    cpdef Stream open(self, bytes block, owner)
    cpdef handle(self, event)
    cpdef check_idle(self)

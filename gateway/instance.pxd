from gateway.endpoint cimport Endpoint
from gateway.loads cimport Load
from gateway.routing.candidates cimport Candidate
from gateway.upstream cimport Pool

cdef class Instance:
    cdef public object config, report, doubt, in_doubt, _left_behind, _hub, _metrics, _clock, _changed
    cdef public str name
    cdef public bytes authority, scheme
    cdef public Endpoint endpoint
    cdef public Load load
    cdef public Candidate candidate
    cdef public Pool pool

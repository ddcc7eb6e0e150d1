from gateway.endpoint cimport Endpoint
from gateway.loads cimport Load

cdef class Candidate:
    cdef public Endpoint endpoint
    cdef public Load load
    cdef public double now

cdef class Endpoint:
    cdef public str name
    cdef public double heartbeat_timeout
    cdef public str pool, group
    cdef public double slow_start
    cdef public object health, engine_up
    cdef public double backoff, probe_at, ready_at
    cdef public object recovered_at
    cdef public long num_unavailable
    cdef public str outlier
    cdef public object expected_beats
    cdef public dict beats
    cdef public object stall_timeout
    cdef public tuple work
    cdef public double worked_at
    cdef public bint has_worked
    cpdef double share(self, double now) except? -1

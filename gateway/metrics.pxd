from gateway.cells cimport Counts, Spread
from gateway.wire.express cimport Tally

cdef class Metrics:
    cdef public object registry, instances, level, retries, resumes, hedges, hedge_wins, level_switches, ejections, aborts
    cdef public object ttft_seconds
    cdef public Tally slow
    cdef public Counts requests, calls, http_answers
    cdef public Spread ttft

cdef class Hedge:
    cdef public object request, instance, key, routed_ns, prefill, link, stream, _hedges, _events, _cutter

cdef class Hedges:
    cdef public bint is_used
    cdef public object _plan, _choose, _observation, _metrics, _hub, _late, _loop, _timers

cdef class Call:
    cdef public bytes path
    cdef public tuple headers
    cdef public object timeout
    cdef public bint wants_status, wants_ledger, is_answered_whole
    cdef public bytes encoding
    cdef public object tenant
    cdef public dict blocks
    cdef public bint is_metered, is_routed
    cdef public str tenant_name, method

cdef class Load:
    cdef public long in_flight
    cdef public double prefill, others
    cdef public object reported_at
    cdef public long last_picked
    cdef public object kv_usage, row, recent
    cpdef join(self, double prefill=*)
    cpdef leave(self, double prefill=*)
    cpdef double total(self, double now) except? -1
    cpdef double discount(self, double now) except? -1

cdef class Count:
    cdef public long long value

cdef class Spread:
    cdef public object bounds
    cdef public list counts
    cdef public double total
    cpdef observe(self, double value)

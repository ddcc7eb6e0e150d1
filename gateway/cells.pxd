cimport cython

cdef class Count:
    cdef public long long value

cdef class Counts:
    cdef public str _name, _documentation
    cdef public object _labels
    cdef public dict _cells
    cpdef Count cell(self, tuple labels)
    @cython.locals(cell=Count)
    cpdef count(self, tuple labels)

cdef class Spread:
    cdef public tuple bounds
    cdef public list counts
    cdef public double total
    @cython.locals(index=long, bound=double)
    cpdef observe(self, double value)

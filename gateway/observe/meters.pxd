cimport cython
from gateway.cells cimport Count, Spread

cdef class Meters:
    cdef public object _found, _ended, _wait, _first, _tokens, _gap
    cdef public dict _cells
    @cython.locals(ended=Count, waits=Spread, firsts=Spread)
    cpdef ended(self, str tenant, str instance, str outcome, wait, first)

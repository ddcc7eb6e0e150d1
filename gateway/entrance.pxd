from gateway.request cimport Request

cdef class Entrance:
    cdef public object _screening, _timeout, _admit, _refuse, _flush
    cdef public bint _allow_commands
    cdef public dict _waiting
    cpdef take(self, Request request)
    cpdef leave(self, Request request)

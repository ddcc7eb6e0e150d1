from gateway.wire.stream cimport Stream

cdef class HeadersReceived:
    cdef public Stream stream
    cdef public object headers
    cdef public bint end_stream, opens

cdef class DataReceived:
    cdef public Stream stream
    cdef public bytes payload
    cdef public long size
    cdef public bint end_stream

cdef class StreamReset:
    cdef public Stream stream
    cdef public long code
    cdef public object fault

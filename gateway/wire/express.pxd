cimport cython
from gateway.wire.outbox cimport Outbox
from gateway.wire.recording cimport Recording
from gateway.wire.stream cimport Stream

cdef class Tally:
    cdef public long messages, num_bytes

@cython.locals(raw="const unsigned char*", first=Py_ssize_t, last=Py_ssize_t, after=Py_ssize_t, count=long, length=long,
               word=long, flags=long, tag=long, source=Stream, recording=Recording,
               wide=list)
cpdef Py_ssize_t forward(bytearray buffer, Py_ssize_t pos, Py_ssize_t end, dict lanes, Tally tally) except -1

@cython.locals(target=Stream, outbox=Outbox)
cpdef bint _may_pass(Stream source, long length, long at_hand, list wide) except -1

@cython.locals(target=Stream, outbox=Outbox)
cpdef _tell(Stream source, long num_bytes)

@cython.locals(in_lane=long, untold=long, passed=long, recording=Recording)
cpdef bint _renew(Stream source, long length) except -1

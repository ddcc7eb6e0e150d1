cimport cython
from gateway.wire.express cimport Tally, forward
from gateway.wire.handlers cimport FrameHandlers, HeaderBlock

cdef long CONTINUATION, DATA, DEFAULT_MAX_FRAME_SIZE, HEADER_SIZE, HEADERS, LOW_WINDOW, MAX_STREAM_ID, SETTINGS

cdef class Connection(FrameHandlers):
    cdef public Tally tally
    cdef public bytes tail, _preface
    cdef public Py_ssize_t _pos
    cdef public object incomplete_since
    cdef public dict _handlers
    cpdef receive(self, bytearray buffer, Py_ssize_t end, double now, handle)
    cpdef Py_ssize_t _skip_preface(self, bytearray buffer, Py_ssize_t end) except -1
    @cython.locals(data=bytes, first=Py_ssize_t, last=Py_ssize_t, word=long, flags=long, stream_id=long, length=Py_ssize_t,
                   begin=Py_ssize_t, kind=long, payload=bytes)
    cpdef _frames(self, bytearray buffer, Py_ssize_t pos, Py_ssize_t end, handle)
    cpdef _note_incomplete(self, bint some_complete, double now)
    cpdef Py_ssize_t _express(self, bytearray buffer, Py_ssize_t pos, Py_ssize_t end) except -1
    cpdef _control_frame(self, long kind, long flags, long stream_id, bytes payload)
    @cython.locals(block=HeaderBlock)
    cpdef _check_order(self, long kind, long stream_id)

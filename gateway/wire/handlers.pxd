cimport cython
from gateway.wire.events cimport DataReceived, HeadersReceived
from gateway.wire.headers cimport HeaderDecoder
from gateway.wire.stream cimport Stream
from gateway.wire.table cimport StreamTable

cdef long END_HEADERS, END_STREAM, HAS_PRIORITY, LOW_WINDOW, PADDED, CLOSED, RECV_DATA, RECV_END, RECV_HEADERS
cdef list NEXT

cdef class HeaderBlock:
    cdef public long stream_id, num_continuations
    cdef public bint end_stream
    cdef public bytearray data

cdef class FrameHandlers(StreamTable):
    cdef public object limits, _guards
    cdef public HeaderDecoder _decoder
    cdef public HeaderBlock _block
    cdef public long _window, _pinged_at_window, _granted, _max_block
    cdef public double now
    cdef public bint _settings_seen
    cdef public object _plain_request
    @cython.locals(size=long, end_stream=bint, stream=Stream)
    cpdef _on_data(self, long flags, long stream_id, bytes payload)
    cpdef _on_headers(self, long flags, long stream_id, bytes payload)
    @cython.locals(block=HeaderBlock)
    cpdef _extend_block(self, long flags, bytes payload)
    @cython.locals(stream=Stream, opens=bint)
    cpdef _take_headers(self, long stream_id, headers, bint end_stream)
    cpdef _renew_window(self)
    @cython.locals(stream=Stream)
    cpdef _open_stream_window(self, long stream_id, long increment)
    cpdef _check_gone(self, long stream_id)
    cpdef _accept(self, long stream_id)

cimport cython
from gateway.wire.frames cimport pack_headers
from gateway.wire.stream cimport Stream

cdef long DATA, END_HEADERS, END_STREAM, HEADERS, SEND_END, SEND_HEADERS
cdef list NEXT

cdef class Outbox:
    cdef public list dirty, chunks, ended, released
    cdef public long window, initial_window, max_frame, num_waited, _table_size
    cdef public bint paused
    cdef public bytes _table_update
    cdef public dict blocked, starved
    cdef public object sink
    cpdef put(self, chunk)
    cpdef take(self)
    cpdef send_headers(self, Stream stream, bytes block, bint end_stream=*)
    @cython.locals(size=long, is_free=bint)
    cpdef send_data(self, Stream stream, piece, owner=*, bint end_stream=*)
    cpdef finish(self, Stream stream, bytes trailers=*)
    cpdef flush(self, Stream stream)
    cpdef flush_starved(self)
    cpdef flush_all(self)
    cpdef forget(self, Stream stream)
    cpdef _wait_no_more(self, Stream stream)
    cpdef _put_frame(self, long kind, long flags, long stream_id, payload)
    @cython.locals(size=long, flags=long)
    cpdef _put_headers(self, Stream stream, bytes block, bint end_stream)
    cpdef _send_some(self, Stream stream, piece, owner)
    cpdef _put_data(self, long stream_id, piece, bint end_stream)

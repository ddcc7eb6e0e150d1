from gateway.call cimport Call
from gateway.request cimport Request
from gateway.turns cimport Turns
from gateway.wire.connection cimport Connection
from gateway.wire.events cimport DataReceived
from gateway.wire.messages cimport MessageReader, frame_message, whole_message
from gateway.wire.outbox cimport Outbox
from gateway.wire.stream cimport Stream

cdef long DONE, END, PREFIX_SIZE, WAITING
cdef tuple OK_TRAILERS

cdef class Exchange:
    cdef public Call call
    cdef public object link, dispatcher, incomplete_since, expires_at, _timer
    cdef public Stream stream
    cdef public dict requests, notes
    cdef public bint ended, _half_closed, _draining, _headers_sent
    cdef public str outcome
    cdef public Turns _turns
    cdef public Connection _connection
    cdef public Outbox _outbox
    cdef public long _uncredited, _max_bytes
    cdef public MessageReader _reader
    cdef public Request _whole
    cpdef on_data(self, DataReceived event)
    cpdef on_end(self)
    cpdef cancel(self, reason)
    cpdef written(self, long size)
    cpdef _take_part(self, Request request, DataReceived event)
    cpdef _take_messages(self, DataReceived event)
    cpdef list _read_bodies(self, bytes payload)
    cpdef _take_request(self, bytes body)
    cpdef Request _new_request(self)
    cpdef _credit(self)
    cpdef response_headers(self, headers)
    cpdef deliver_message(self, Request request, bytes message)
    cpdef deliver(self, Request request, list pieces, long num_messages)
    cpdef succeeded(self, Request request, trailers)
    cpdef failed(self, Request request, failure)
    cpdef _send_headers(self, bytes block)
    cpdef _finish_if_done(self)
    cpdef _end_with(self, trailers, outcome)
    cpdef _last_block(self, trailers)
    cpdef _close(self, outcome)

cpdef bytes pack_frame(long frame_type, long flags, long stream_id, payload=*)
cpdef bytes pack_window_update(long stream_id, long increment)
cpdef bytes pack_reset(long stream_id, long code)
cpdef bytes pack_headers(long stream_id, bytes block, bint end_stream, long max_frame_size)

cdef class Policy:
    cdef public tuple scorers, filters
    cdef public object num_choices, marks
    cdef public bint wants_session

cimport cython
from gateway.endpoint cimport Endpoint
from gateway.routing.candidates cimport Candidate

@cython.locals(endpoint=Endpoint, now=double, share=double)
cpdef score(_request, Candidate candidate)

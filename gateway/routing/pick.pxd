cimport cython
from gateway.routing.asked cimport Asked
from gateway.routing.candidates cimport Candidate
from gateway.routing.policy cimport Policy

@cython.locals(best=double, total=double, last=long, picked=long, num_equal=long, candidate=Candidate, chosen=Candidate)
cpdef pick(Asked request, candidates, rng, Policy policy=*, filters=*)

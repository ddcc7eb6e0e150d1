from gateway.routing.asked cimport Asked

cpdef untried(Asked request, candidates, _rng)

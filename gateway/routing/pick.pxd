cimport cython

@cython.locals(best=double, total=double, last=long, picked=long, num_equal=long)
cpdef pick(request, candidates, rng, policy=*, filters=*)

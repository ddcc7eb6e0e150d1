cimport cython

@cython.locals(total=double, num_equal=long)
cpdef pick(request, candidates, rng, policy=*, filters=*)

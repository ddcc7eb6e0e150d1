from gateway.loads cimport Load
from gateway.routing.asked cimport Asked
from gateway.routing.pick cimport pick
from gateway.routing.policy cimport Policy

cdef class Router:
    cdef public object config, levels, outliers, _rng
    cdef public Policy policy
    cdef public long _num_picks
    cdef public tuple _filters
    cpdef choose(self, Asked asked, candidates)
    cpdef placed(self, Asked asked, str name, Load load, double now)

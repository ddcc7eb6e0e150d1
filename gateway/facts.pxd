from gateway.request cimport Request

cpdef bytes engine_facts(Request request, str key, double now)

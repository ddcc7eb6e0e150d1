"""One scorer a file: how good an instance is for a request, from 0 to 1."""

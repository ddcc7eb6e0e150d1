"""Several gateway processes on one port, which share what they have in flight."""

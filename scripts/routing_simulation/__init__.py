"""Replays arrivals through the gateway's routing policies against modelled instances."""

"""Replaying arrivals and lengths through the engine's scheduler, without a model."""

"""What a model would do on devices that need not be here: a cost model of steps, layouts and load. Pure."""

"""Commands that people run: thin programs over the launcher, the engine and the gateway."""

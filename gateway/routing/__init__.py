"""Which instance a request goes to. Pure: time, randomness and load come from outside."""

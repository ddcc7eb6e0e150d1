"""The LLM engine: scheduling, KV cache, model execution and sampling, without Triton and without the network."""

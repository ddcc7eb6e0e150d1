"""Text to token ids and back: tokenizer, chat template, streaming detokenizer and stop strings; no torch, no Triton."""

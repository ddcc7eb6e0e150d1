"""`scripts/quantize_checkpoint`: hand over to the quantizer."""

from scripts.quantization.command import app

if __name__ == "__main__":
    app(prog_name="scripts/quantize_checkpoint")

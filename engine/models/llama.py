"""The Llama family: Llama 2 and 3 and everything that kept their shape.

Sources: Llama (arXiv 2302.13971), Llama 2 (arXiv 2307.09288) for grouped-query attention, Llama 3 (arXiv 2407.21783).
"""

from engine.models.decoder import Decoder


class Llama(Decoder):
    """The shared decoder as it is."""

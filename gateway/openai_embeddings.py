"""OpenAI's embeddings: one request to the model for each text, and one answer of them all.

Knows the body, the answer and how many texts are asked for at once. Does not know HTTP.

Invariant: when `embed` returns or raises, none of its requests is open.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.kserve_messages import MODEL, Chunk, KserveError, Tensor, prompt_tensors, text_tensor
from gateway.openai_parts import Named, Prompts, Some, Text, TokenIds
from gateway.openai_prompts import Open

MAX_AT_ONCE = 16
FLOAT_BYTES = 4
NonEmptyText = Annotated[Text, Field(min_length=1)]


class EmbeddingBody(Named):
    """`POST /v1/embeddings`; null is the same as absent."""

    input: Annotated[NonEmptyText | TokenIds | Some[NonEmptyText] | Some[TokenIds], Prompts]
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["last", "mean"] | None = None
    adapter: Text | None = None

    def requests(self) -> list[list[Tensor]]:
        """Return the inputs of the model for each text."""
        shared = [text_tensor("embed", [self.pooling or "last"])]
        if self.adapter is not None:
            shared.append(text_tensor("adapter", [self.adapter]))
        return [[prompt, *shared] for prompt in prompt_tensors(self.input)]


async def embed(open_one: Open, body: EmbeddingBody) -> str:
    """Return OpenAI's answer to the body as JSON, with a request by `open_one` for each text.

    Each vector is written down when it comes: all at once would hold every stream up, for seconds where they are many.

    Raises:
        KserveError: a text could not be embedded.
    """
    places = asyncio.Semaphore(MAX_AT_ONCE)
    as_text = body.encoding_format == "base64"

    async def item(index: int, tensors: Sequence[Tensor]) -> tuple[str, int]:
        answer = await _embed_one(open_one, tensors, places)
        return _item(index, answer.embedding, as_text=as_text), answer.prompt_tokens

    tasks = [asyncio.ensure_future(item(index, tensors)) for index, tensors in enumerate(body.requests())]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    num_tokens = sum(count for _, count in answers)
    usage = json.dumps({"prompt_tokens": num_tokens, "total_tokens": num_tokens})
    data = ",".join(made for made, _ in answers)
    return f'{{"object": "list", "data": [{data}], "model": "{MODEL}", "usage": {usage}}}'


async def _embed_one(open_one: Open, tensors: Sequence[Tensor], places: asyncio.Semaphore) -> Chunk:
    async with places:
        completion = open_one(tensors)
        try:
            async with aclosing(completion.batches()) as batches:
                last = [batch[-1] async for batch in batches][-1]
        finally:
            completion.cancel()
    if not last.embedding:
        raise KserveError("INTERNAL", "the model's answer holds no embedding")
    return last


def _item(index: int, raw: bytes, *, as_text: bool) -> str:
    """Return one vector, fp32 in little-endian order, as a list or in base64, as JSON.

    Raises:
        ValueError: it holds what is no number.
    """
    values: Any = (
        base64.b64encode(raw).decode() if as_text else list(struct.unpack(f"<{len(raw) // FLOAT_BYTES}f", raw))
    )
    return json.dumps({"object": "embedding", "index": index, "embedding": values}, allow_nan=False)

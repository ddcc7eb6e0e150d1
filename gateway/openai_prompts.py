"""The completions of several prompts as one: all their choices in one answer.

Knows requests, how many of them are open at once, and how choices are numbered. Does not know HTTP.

Invariants:
1. Choice i of prompt p is choice p * n + i of the answer, as OpenAI numbers them.
2. When `batches` ends, raises or is closed, none of its requests is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from gateway.kserve_client import Completion
from gateway.kserve_messages import Chunk, Tensor

MAX_AT_ONCE = 64  # requests; further prompts wait
MAX_READ_AHEAD = 64  # batches of chunks that nobody has taken yet

Open = Callable[[Sequence[Tensor]], Completion]


class Completions:
    """Several completions in flight; takes the place of one."""

    def __init__(self, open_one: Open, requests: Sequence[Sequence[Tensor]], num_choices: int) -> None:
        """Open requests by `open_one`, each with `num_choices` choices, once batches are asked for."""
        self._open = open_one
        self._requests = requests
        self._num_choices = num_choices
        self._ledgers: dict[int, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ledger(self) -> list[Any] | None:
        """Return the ledgers of all prompts in their order, known once all chunks have been read, where asked for."""
        return [self._ledgers[prompt] for prompt in sorted(self._ledgers)] or None

    async def batches(self) -> AsyncGenerator[list[Chunk], None]:
        """Yield the responses to all prompts as they come.

        Raises:
            KserveError: one of the requests failed or was ended by somebody else.
        """
        arrived: asyncio.Queue[list[Chunk] | Exception | None] = asyncio.Queue(MAX_READ_AHEAD)
        places = asyncio.Semaphore(MAX_AT_ONCE)
        work = [self._follow(prompt, tensors, arrived, places) for prompt, tensors in enumerate(self._requests)]
        self._tasks = [asyncio.ensure_future(each) for each in work]
        try:
            num_open = len(self._tasks)
            while num_open:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    yield item
        finally:
            self.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel(self) -> None:
        """End them; without effect on those that have ended."""
        for task in self._tasks:
            task.cancel()

    async def _follow(
        self,
        prompt: int,
        tensors: Sequence[Tensor],
        arrived: asyncio.Queue[list[Chunk] | Exception | None],
        places: asyncio.Semaphore,
    ) -> None:
        try:
            async with places:
                await self._read(prompt, tensors, arrived)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader raises it
            await arrived.put(error)
        else:
            await arrived.put(None)

    async def _read(
        self, prompt: int, tensors: Sequence[Tensor], arrived: asyncio.Queue[list[Chunk] | Exception | None]
    ) -> None:
        completion = self._open(tensors)
        try:
            async with aclosing(completion.batches()) as batches:
                async for batch in batches:
                    for chunk in batch:
                        chunk.prompt, chunk.index = prompt, prompt * self._num_choices + chunk.index
                    await arrived.put(batch)
        finally:
            completion.cancel()
        if completion.ledger is not None:
            self._ledgers[prompt] = completion.ledger

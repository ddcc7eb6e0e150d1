"""OpenAI's completions API as routes.

Knows its answers, events and errors. Does not know tensors or how a request finds an instance.

Invariants:
1. Every error has OpenAI's shape and a status of its own kind, also before the first event of a stream.
2. A client that goes away ends its request, streaming or not.
3. Once draining, what is under way goes on to its end, however many requests to the model it still takes.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.call import WHOLE_FLAG
from gateway.cells import Counts
from gateway.demanded_calls import CALL_FORM
from gateway.kserve_client import Completion, KserveClient
from gateway.kserve_messages import MODEL, Chunk, KserveError, Tensor
from gateway.log import log_defect
from gateway.openai_bodies import Body, ChatBody, CompletionBody
from gateway.openai_config import OpenAiConfig
from gateway.openai_embeddings import embed
from gateway.openai_errors import ApiError, of_kserve
from gateway.openai_parsing import parse_body, parse_embedding_body, unknown_model
from gateway.openai_prompts import Completions
from gateway.openai_reading import REQUEST_ID, given_id, metadata_of, read_body, timeout_of
from gateway.openai_shapes import CHAT, TEXT, Reply, Shape, event
from gateway.safety.guard import Denied, Guard

T = TypeVar("T")
CLOSED = 499  # the status of an answer that nobody reads
ANSWERED_WHOLE = (WHOLE_FLAG.decode(), "true")
KINDS: dict[str, tuple[type[Body], Shape]] = {
    "/v1/completions": (CompletionBody, TEXT),
    "/v1/chat/completions": (ChatBody, CHAT),
}
PROMPTS = {"/v1/completions": "prompt", "/v1/chat/completions": "messages", "/v1/embeddings": "input"}
OTHER_PATHS = "other"
METHODS = dict.fromkeys(PROMPTS, "POST") | {"/v1/models": "GET"}


class EventStream(Response):
    """Server-sent events of one request, which ends with them."""

    media_type = "text/event-stream"

    def __init__(
        self,
        reply: Reply,
        completion: Completion | Completions,
        first: list[Chunk],
        further: AsyncGenerator[list[Chunk], None],
    ) -> None:
        """Take the request, its first chunks and where the others come from."""
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._reply = reply
        self._completion = completion
        self._first = first
        self._further = further

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send all events, or as many as somebody reads."""
        try:
            await _while_connected(receive, self._send(send))
        finally:
            self._completion.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send_events(send, self._reply.events(self._first))
        try:
            async for chunks in self._further:  # as many as there are by now: they leave in one piece
                await self._send_events(send, self._reply.events(chunks))
            end = self._reply.closing(_ledger(self._completion))
        except KserveError as error:
            end = event(of_kserve(error).body)
        await self._send_events(send, end, is_last=True)

    async def _send_events(self, send: Send, events: str, *, is_last: bool = False) -> None:
        await send({"type": "http.response.body", "body": events.encode(), "more_body": not is_last})


class _Endpoint:
    """What answers at one or several places: an ASGI application."""

    def __init__(self, api: OpenAiApi, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self._api = api
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, whole or in a stream."""
        self._api.num_open += 1
        try:
            response = await self._api.answer(Request(scope, receive), self._handle)
            await response(scope, receive, send)
        finally:
            self._api.num_open -= 1


class OpenAiApi:
    """The routes under `/v1`."""

    def __init__(self, client: KserveClient, guard: Guard, config: OpenAiConfig, answers: Counts) -> None:
        """Send requests through this client, for whom the guard knows; count `answers` by path and status."""
        self._client = client
        self._answers = answers
        self.config = config
        self._guard = guard
        self._created = int(time.time())
        self._is_draining = False
        self.num_open = 0  # HTTP requests under way

    def routes(self) -> list[Route]:
        """Return all of them; what is unknown under `/v1` is refused in OpenAI's shape."""
        made = [Route(path, _Endpoint(self, self._generate), methods=["POST"]) for path in KINDS]
        embeddings = Route("/v1/embeddings", _Endpoint(self, self._embed), methods=["POST"])
        models = Route("/v1/models", _Endpoint(self, self._models), methods=["GET"])
        other = Route("/v1/{path:path}", _Endpoint(self, self._other))
        return [*made, embeddings, models, other]

    def drain(self) -> None:
        """Refuse what comes from now on, and finish what is open."""
        self._is_draining = True

    async def answer(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        """Return what the handler answers, or the error that it becomes, with the request's id in records."""
        request.state.id = f"req_{uuid.uuid4().hex}"
        response = await self._answer(request, handle)
        response.headers[REQUEST_ID] = request.state.id
        path = request.scope["path"]
        self._answers.count((path if path in METHODS else OTHER_PATHS, str(response.status_code)))
        return response

    async def _answer(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            request.state.id = given_id(request) or request.state.id
            self._guard.identify(request.headers.raw)
            if self._is_draining:
                raise KserveError("UNAVAILABLE", "the gateway is shutting down")
            return await handle(request)
        except Denied as error:
            return ApiError(401, str(error), code="invalid_api_key").response()
        except ApiError as error:
            return error.response()
        except KserveError as error:
            return of_kserve(error, PROMPTS.get(request.scope["path"])).response()
        except ClientDisconnect:
            return Response(status_code=CLOSED)
        except Exception as error:  # noqa: BLE001 - the outermost edge: logged, and answered in OpenAI's shape
            log_defect("http_request_failed", error, request_id=request.state.id)
            return ApiError(500, "internal error").response()

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def _other(self, request: Request) -> Response:
        path = request.scope["path"]
        name = path.removeprefix("/v1/models/")
        allowed = "GET" if name != path else METHODS.get(path)
        if name != path and request.method in {"GET", "HEAD"}:
            if name != MODEL:
                raise unknown_model(name)
            return JSONResponse(self._model())
        if allowed is not None:
            raise ApiError(405, f"{path} takes {allowed}, not {request.method}", headers={"allow": allowed})
        raise ApiError(404, f"there is no {request.method} {path}")

    def _model(self) -> dict[str, Any]:
        return {"id": MODEL, "object": "model", "created": self._created, "owned_by": "scalellm-triton"}

    async def _generate(self, request: Request) -> Response:
        kind, shape = KINDS[request.scope["path"]]
        body = parse_body(kind, await read_body(request))
        reply = Reply(
            shape,
            f"{shape.prefix}-{uuid.uuid4().hex}",
            int(time.time()),
            body.num_top,
            body.offered,
            CALL_FORM if body.must_call else self.config.tool_calls,
            with_usage=body.stream_options is not None and body.stream_options.include_usage is True,
        )
        completion = self._completion(request, body)
        try:
            if not body.stream:
                answer = await _while_connected(request.receive, _collect(reply, completion))
                if answer is not None:
                    return JSONResponse(answer)
            else:
                batches = completion.batches()
                first = await _while_connected(request.receive, anext(batches))
                if first is not None:
                    return EventStream(reply, completion, first, batches)
        except BaseException:
            completion.cancel()
            raise
        completion.cancel()
        return Response(status_code=CLOSED)

    def _completion(self, request: Request, body: Body) -> Completion | Completions:
        metadata, timeout, requests = metadata_of(request), timeout_of(request), body.requests()
        request_id: str = request.state.id
        if not body.stream:
            metadata.append(ANSWERED_WHOLE)
        if len(requests) == 1:
            return self._client.open(requests[0], metadata, timeout, request_id)
        now = asyncio.get_running_loop().time
        ends_at = None if timeout is None else now() + timeout

        def open_one(tensors: Sequence[Tensor]) -> Completion:
            left = None if ends_at is None else max(0.0, ends_at - now())
            return self._client.open(tensors, metadata, left, request_id)

        return Completions(open_one, requests, body.n or 1)

    async def _embed(self, request: Request) -> Response:
        body = parse_embedding_body(await read_body(request))
        metadata, timeout, request_id = metadata_of(request), timeout_of(request), request.state.id

        def open_one(tensors: Sequence[Tensor]) -> Completion:
            return self._client.open(tensors, metadata, timeout, request_id)

        answer = await _while_connected(request.receive, embed(open_one, body))
        return Response(status_code=CLOSED) if answer is None else Response(answer, media_type="application/json")


async def _while_connected(receive: Receive, work: Awaitable[T]) -> T | None:
    """Return what the work returns, or None where the client went away before."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        leaving.cancel()


async def _collect(reply: Reply, completion: Completion | Completions) -> dict[str, Any]:
    async with aclosing(completion.batches()) as batches:
        received = [chunk async for batch in batches for chunk in batch]
    return reply.whole(received) | _ledger(completion)


def _ledger(completion: Completion | Completions) -> dict[str, Any]:
    return {} if completion.ledger is None else {"ledger": completion.ledger}

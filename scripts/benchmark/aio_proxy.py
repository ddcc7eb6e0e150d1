"""A bytes proxy on gRPC's own asyncio runtime: what one would write without a frame relay. Only for comparison.

Each stream goes to the next backend in turn; messages are passed as bytes, never parsed.
"""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._next = itertools.cycle(channels)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(self._relay_to(handler_call_details.method))

    def _relay_to(self, method: str) -> Callable[..., AsyncIterator[bytes]]:
        async def relay(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
            call = next(self._next).stream_stream(method)(requests)
            async for message in call:
                yield message

        return relay


async def serve(port: int, backends: list[str]) -> None:
    """Run the proxy until it is killed."""
    server = grpc.aio.server(options=OPTIONS)
    channels = [grpc.aio.insecure_channel(backend, options=OPTIONS) for backend in backends]
    server.add_generic_rpc_handlers((_Handler(channels),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2:]))

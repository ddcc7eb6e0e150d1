"""KServe's messages; their classes are made at run time, out of a type checker's sight."""

from typing import Any

from tritonclient.grpc import service_pb2

pb: Any = service_pb2

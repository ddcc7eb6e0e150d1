"""The gateway: relays KServe v2 gRPC to the instance with the shortest queue."""

from gateway import compiled

compiled.activate()

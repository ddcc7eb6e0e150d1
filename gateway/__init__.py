"""The gateway: relays KServe v2 gRPC to the instance with the shortest queue."""

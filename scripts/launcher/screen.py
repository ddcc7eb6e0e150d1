"""What a person sees when the system serves.

Knows addresses and which interfaces answer. Does not know processes. Everything goes to stderr.
"""

import http.client

from scripts.launcher.cluster import Cluster
from scripts.launcher.examples import curl_example, openai_example, tritonclient_example
from scripts.launcher.progress import say

ASK_SECONDS = 2.0


def show_endpoints(cluster: Cluster) -> None:
    """Print where everything listens and commands to paste, each for an interface that answers."""
    gateway = cluster.gateway
    say(f"\ngateway   KServe gRPC  {gateway.grpc_url}   (tritonclient, scripts/chat, Locust)")
    say(f"          HTTP         http://{gateway.http_url}   (/v1, /metrics, /healthz)")
    for instance in cluster.instances:
        say(f"{instance.name}: gRPC {instance.grpc_url}  HTTP {instance.http_url}  metrics {instance.metrics_url}")
    say("\nIn another terminal, in this folder:\n")
    say("scripts/chat" if gateway.grpc_url == "127.0.0.1:8001" else f"scripts/chat --url {gateway.grpc_url}")
    say(f"\n{tritonclient_example(gateway.grpc_url)}")
    say(f"\n{curl_example(cluster.instances[0].http_url)}\n")
    if answers(gateway.http_url, "/v1/models"):
        say(f"{openai_example(gateway.http_url)}\n")


def answers(url: str, path: str) -> bool:
    """Return whether a GET of the path at `host:port` succeeds."""
    connection = http.client.HTTPConnection(url, timeout=ASK_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

"""What can be set about records of requests.

Knows fields. Does not know what is recorded.
"""

import importlib.util
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from gateway.strict import PathInFolder, Strict


class JournalConfig(Strict):
    """Where requests and metrics are written down, and how many of them are kept."""

    path: PathInFolder = Field(description="SQLite file")
    max_rows: int = Field(default=1_000_000, ge=1, description="rows kept in each table")
    max_age_s: float = Field(default=7 * 86400.0, gt=0, description="seconds that they are kept")
    snapshot_interval_s: float = Field(default=10.0, gt=0, description="seconds between two snapshots of the metrics")


class TracingConfig(Strict):
    """Where spans go; needs the extra `tracing`."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")] = Field(
        description="OTLP over HTTP, as http://host:4318/v1/traces"
    )
    service: str = Field(default="scalellm-gateway", description="name of the service in spans")
    sample: float = Field(default=1.0, ge=0, le=1, description="share of requests whose client has not decided")

    @model_validator(mode="after")
    def _is_installed(self) -> "TracingConfig":
        try:
            found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ValueError("OpenTelemetry is not installed: pip install 'scalellm-triton[tracing]'")
        return self


class ObserveConfig(Strict):
    """How closely requests are watched: a watched one is read message by message, outside the express lane."""

    sample: float = Field(default=0.0, ge=0, le=1, description="share of requests that are watched")
    log_requests: bool = Field(default=False, description="a line of the log for each request that has ended")
    journal: JournalConfig | None = None
    tracing: TracingConfig | None = None

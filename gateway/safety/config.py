"""What can be set about tenants, their keys and their limits.

Knows fields and how they fit together. Does not know requests.
"""

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, StringConstraints, model_validator

from gateway.content.config import ContentConfig
from gateway.safety.keys import Key, read_keys, tenants_by_digest
from gateway.strict import AnyPath, Strict

TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class LimitConfig(Strict):
    """So many requests or tokens in so many seconds; a budget is a limit over a long time."""

    what: Literal["requests", "tokens"] = Field(description="what is counted")
    amount: int = Field(gt=0, description="so many")
    per_s: float = Field(default=60.0, gt=0, description="in so many seconds")
    burst: int | None = Field(default=None, gt=0, description="most at once; absent: the amount")


class TenantConfig(Strict):
    """One group of callers and what it is entitled to."""

    name: TenantName = Field(description="letters, digits, _, . and -; at most 64")
    weight: int = Field(default=1, ge=1, le=1000, description="its share of an engine, against other tenants'")
    priority_class: int = Field(default=4, ge=0, le=100, description="the lower, the sooner")
    limits: tuple[LimitConfig, ...] = ()
    max_concurrent: int | None = Field(default=None, ge=1, description="requests in flight; absent: any")
    max_request_bytes: int | None = Field(
        default=None, ge=1, description="bytes of one request; absent: the gateway's limit"
    )
    is_admin: bool = Field(default=False, description="whether it may drain and resume instances")


class SafetyConfig(Strict):
    """Everything about who may ask for what; without tenants everybody may ask for everything but management."""

    reads_files = ("keys_file",)
    allow_management: bool = Field(
        default=False, description="whether clients reach Triton's management calls and the engine's commands"
    )
    tenants: tuple[TenantConfig, ...] = ()
    keys_file: AnyPath | None = Field(default=None, description="file of lines TENANT sha256:HEX")
    keys_env: str | None = Field(default=None, description="environment variable with such lines")
    anonymous_tenant: TenantName | None = Field(
        default=None, description="tenant of calls without a key; absent: they are refused"
    )
    max_in_flight: int | None = Field(default=None, ge=1, description="requests of all tenants together; absent: any")
    queue_size: int = Field(default=1024, ge=0, description="requests that may wait for a limit")
    max_wait_s: float = Field(default=1.0, ge=0, description="seconds that they may wait")
    content: ContentConfig | None = None
    assumed_completion_tokens: int = Field(
        default=256, ge=1, description="tokens of a request that does not say max_tokens"
    )
    _keys: tuple[Key, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _check(self) -> "SafetyConfig":
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ValueError("two tenants have the same name")
        self._keys = tuple(read_keys(self.keys_file, self.keys_env))
        wanted = set(tenants_by_digest(self._keys).values()) | ({self.anonymous_tenant} - {None})
        if unknown := wanted - set(names):
            raise ValueError(f"there is no tenant {', '.join(sorted(map(str, unknown)))}")
        if self.tenants and not wanted:
            raise ValueError("there are tenants, but neither keys nor an anonymous tenant: nobody could ask anything")
        if self.max_in_flight is not None and not self.tenants:
            raise ValueError("max_in_flight needs tenants; one anonymous tenant is enough")
        return self

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys of the file and of the environment."""
        return self._keys

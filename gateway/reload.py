"""Applies a changed configuration to a running gateway, or refuses it as a whole.

Knows which fields may change. Does not know when a change comes about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.config import ConfigError
from gateway.log import log, log_defect
from gateway.tls import TlsError
from gateway.workers.table import TableFull

if TYPE_CHECKING:
    from gateway.config import GatewayConfig


def _fixed(config: GatewayConfig) -> dict[str, object]:
    """Return what sockets, processes or records were made with."""
    return {
        "grpc_address": config.grpc_address,
        "http_address": config.http_address,
        "workers": config.workers,
        "whether there is tls": config.tls is None,
        "observe.journal": config.observe.journal,
        "observe.tracing": config.observe.tracing,
    }


def check_change(before: GatewayConfig, after: GatewayConfig) -> None:
    """Refuse a change of what is fixed while the gateway runs.

    Raises:
        ConfigError: names every such field.
    """
    old, new = _fixed(before), _fixed(after)
    if changed := [name for name, value in new.items() if value != old[name]]:
        raise ConfigError(f"only a restart can change {', '.join(changed)}")


def keep_bound(
    read: Callable[[], GatewayConfig], given: GatewayConfig, running: GatewayConfig
) -> Callable[[], GatewayConfig]:
    """Return a reading for one of several workers, who listen where the first of them was bound.

    An address that is `given` as before, such as one with port 0, is read as the one of the `running` worker.
    """

    def read_bound() -> GatewayConfig:
        new = read()
        same = [name for name in ("grpc_address", "http_address") if getattr(new, name) == getattr(given, name)]
        return new.model_copy(update={name: getattr(running, name) for name in same})

    return read_bound


def reload(
    current: GatewayConfig, read: Callable[[], GatewayConfig], apply: Callable[[GatewayConfig], None]
) -> GatewayConfig:
    """Return the configuration in force after an attempt to read and apply a new one; a refusal is logged."""
    try:
        new = read()
        check_change(current, new)
        if new == current:
            return current
        apply(new)
    except (ConfigError, TlsError, TableFull) as error:
        log("config_refused", reason=str(error))
        return current
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one, the old one serves
        log_defect("config_refused", error, reason=repr(error))
        return current
    changed = [name for name in type(new).model_fields if getattr(new, name) != getattr(current, name)]
    log("config_applied", changed=changed)
    return new

"""`python -m gateway`: the command line.

Knows flags and how they override a file. Does not know what the gateway does with them.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import uvloop

from gateway.config import ConfigError, GatewayConfig, make_config, parse_instance, read_fields
from gateway.config_help import describe, describe_field
from gateway.strict import in_folder_of

FLAGS = (
    "grpc_address",
    "http_address",
    "queue_timeout_s",
    "heartbeat_timeout_s",
    "drain_timeout_s",
    "max_retries",
    "resume",
    "workers",
)


DESCRIPTION = "Relay KServe v2 gRPC, and OpenAI's API over HTTP, to the tritonserver with the shortest queue."
EPILOG = (
    "SIGTERM drains and stops, a second one cuts. SIGHUP, or a change of FILE or of a file that it names, applies it "
    "to the running gateway, with all its workers; addresses, workers, observe.journal, observe.tracing and whether "
    "there is tls need a restart."
)


def parse_arguments(arguments: list[str]) -> GatewayConfig:
    """Return the configuration that the command line asks for.

    Raises:
        ConfigError: it is not valid.
    """
    return read_config(parse_flags(arguments))


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = argparse.ArgumentParser("python -m gateway", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML or JSON; flags override it")
    parser.add_argument("--help-config", action=HelpConfig, nargs=0, help="show every field of FILE and exit")
    parser.add_argument(
        "--instance", action="append", default=[], metavar="ADDRESS",
        help="HOST:GRPC_PORT[,HOST:METRICS_PORT] of a tritonserver; may be given several times",
    )  # fmt: skip
    for flag in FLAGS:
        text = describe_field(GatewayConfig.model_fields[flag]).replace("%", "%%")
        parser.add_argument("--" + flag.replace("_", "-"), default=None, metavar="VALUE", help=text)
    return parser.parse_args(arguments)


class HelpConfig(argparse.Action):
    """Shows what a configuration file may hold."""

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> None:
        """Print and exit."""
        sys.stdout.write("\n".join(describe(GatewayConfig)) + "\n")
        parser.exit()


def read_config(given: argparse.Namespace) -> GatewayConfig:
    """Return the configuration that the flags ask for, reading the file again.

    Raises:
        ConfigError: it is not valid.
    """
    fields = read_fields(given.config) if given.config else {}
    fields |= {flag: getattr(given, flag) for flag in FLAGS if getattr(given, flag) is not None}
    if given.instance:
        fields["instances"] = [parse_instance(text) for text in given.instance]
    return make_config(fields, in_folder_of(given.config) if given.config else None)


def main() -> int:
    """Run the gateway; return the exit status."""
    try:
        given = parse_flags(sys.argv[1:])
        config = read_config(given)
    except ConfigError as error:
        sys.stderr.write(f"the configuration is refused: {error}\n")
        return 2
    from gateway.log import take_library_logs
    from gateway.server import serve, work
    from gateway.tls import TlsError
    from gateway.updates import ConfigSource
    from gateway.workers.supervisor import supervise

    take_library_logs()
    try:
        source = ConfigSource(lambda: read_config(given), given.config)
        if config.workers > 1:
            return supervise(config, partial(work, config, source))
        uvloop.run(serve(config, source))
    except (ConfigError, TlsError) as error:
        sys.stderr.write(f"the configuration is refused: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"cannot start: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

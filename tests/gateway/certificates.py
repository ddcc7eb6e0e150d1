"""Certificates for tests, made with the openssl command: an authority, a server and a client that it signed."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files in one folder."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def tls(self, name: str, authority: str) -> dict[str, str]:
        """Return the configuration's fields, the authority under the given name."""
        return {"certificate": str(self.certificate(name)), "key": str(self.key(name)), authority: str(self.ca)}


def make_certificates(folder: Path) -> Certificates:
    """Make an authority, `server` and `client`, and a `stranger` that signed itself."""
    made = Certificates(folder)
    for name in ("ca", "stranger"):
        _openssl(made, name, "-addext", NAMES)
    for name in ("server", "client"):
        _openssl(made, name, "-addext", NAMES, "-CA", str(made.ca), "-CAkey", str(made.key("ca")))
    return made


def _openssl(made: Certificates, name: str, *extra: str) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(made.key(name)), "-out", str(made.certificate(name))]
    subprocess.run([*command, *files, *extra], check=True, capture_output=True)

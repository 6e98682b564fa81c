"""A server's requirements of its clients besides the request: key, further headers, certificates."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from muai_lab.errors import RunError
from muai_lab.settings.target import TargetSettings


@dataclass(frozen=True, slots=True)
class EndpointAccess:
    """Key and headers of every request, and the authorities for the server's certificate.

    Neither key nor secret headers are recorded or shown.

    Attributes:
        api_key: Sent as a bearer token.
        headers: Further headers by name.
        secret_headers: Further headers with secret values.
        ca_file: PEM file of trusted authorities besides those of the system.
    """

    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    secret_headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and not _fits_a_header(self.api_key):
            raise RunError(
                "the endpoint's key has characters that HTTP does not allow in a header; look for a line end"
            )
        for name, value in self.secret_headers.items():
            if not _fits_a_header(value):
                raise RunError(f"the value of the header {name} (target.headers_env) has characters that HTTP forbids")

    @classmethod
    def of(cls, target: TargetSettings, environ: Mapping[str, str] = os.environ) -> EndpointAccess:
        """Return the access of the settings; raises RunError if `environ` lacks a variable with a secret."""
        return cls(
            api_key=None
            if target.api_key_env is None
            else _variable(target.api_key_env, "target.api_key_env", environ),
            headers=target.headers,
            secret_headers={
                name: _variable(variable, f"target.headers_env.{name}", environ)
                for name, variable in target.headers_env.items()
            },
            ca_file=target.ca_file,
        )

    def lines(self) -> Iterator[str]:
        """Yield the header lines of a request."""
        given = {**self.headers, **self.secret_headers}
        if self.api_key is not None and "authorization" not in {name.lower() for name in given}:
            yield f"Authorization: Bearer {self.api_key}"
        yield from (f"{name}: {value}" for name, value in given.items())

    def without_secrets(self, text: str) -> str:
        """Return the text without the key and the secret headers' values."""
        for secret in (self.api_key, *self.secret_headers.values()):
            if secret:
                text = text.replace(secret, "***")
        return text

    def tls(self) -> ssl.SSLContext:
        """Return the check of the server's certificate; raises RunError if `ca_file` cannot be read."""
        context = ssl.create_default_context()
        if self.ca_file is not None:
            try:
                context.load_verify_locations(Path(self.ca_file).expanduser())
            except (OSError, ssl.SSLError) as error:
                reason = getattr(error, "strerror", None) or error
                raise RunError(f"target.ca_file={self.ca_file} holds no certificates in PEM form: {reason}") from error
        return context


def secret_variables(target: TargetSettings) -> list[str]:
    """Return the names of the variables that hold the secrets of an endpoint."""
    return [name for name in (target.api_key_env, *target.headers_env.values()) if name is not None]


def _variable(name: str, key: str, environ: Mapping[str, str]) -> str:
    if not (value := environ.get(name)):
        raise RunError(f"the environment variable {name} ({key}) is not set; export it")
    return value


def _fits_a_header(value: str) -> bool:
    return value.isascii() and value.isprintable()

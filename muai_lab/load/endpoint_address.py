"""The addresses of an OpenAI-compatible API, from the one in the settings."""

from __future__ import annotations

from dataclasses import dataclass

from yarl import URL

from muai_lab.errors import RunError
from muai_lab.settings.workload import Api

_PATHS: dict[Api, str] = {"completions": "completions", "chat": "chat/completions"}


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """The address of an API.

    base: the common beginning of the API's addresses. Its query (`api-version=2024-10-21`) belongs to every path.
    """

    base: URL

    @classmethod
    def of(cls, written: str, api: Api) -> EndpointAddress:
        """Read `target.url`.

        `/v1` is added unless the path ends in it. An address that ends in `/completions` is a path of the API itself
        and is used unchanged. Raises RunError if it is no address, or one of another API than `api`.
        """
        try:
            url = URL(written).with_fragment(None)
            port = url.port
        except ValueError as error:
            raise _not_an_address(written, str(error)) from error
        if url.scheme not in ("http", "https") or not url.host or port is None:
            raise _not_an_address(written, "write it as http://host:port")
        if url.user is not None or url.password is not None:
            raise RunError(
                "target.url holds a user or a password, which every result would record; use target.api_key_env"
            )
        path = url.raw_path.rstrip("/")
        named = next((known for known in ("chat", "completions") if path.endswith(f"/{_PATHS[known]}")), None)
        if named is not None and named != api:
            raise RunError(f"target.url={written!r} is for workload.api={named}, but workload.api is {api}; change one")
        if named is not None:
            path = path.removesuffix(f"/{_PATHS[named]}")
        elif not path.endswith("/v1"):
            path = f"{path}/v1"
        return cls(url.with_path(path, encoded=True, keep_query=True))

    def completions(self, api: Api) -> URL:
        """Return the address of completions."""
        return self.path(_PATHS[api])

    def path(self, below: str) -> URL:
        """Return the address of a path of the API."""
        return self.base.with_path(f"{self.base.raw_path}/{below}", encoded=True, keep_query=True)


def _not_an_address(written: str, why: str) -> RunError:
    return RunError(f"target.url={written!r} is not an HTTP address: {why}")


def host_header(url: URL) -> str:
    """Return the value of `Host`: IPv6 in brackets, a port unless it is the scheme's default (RFC 9110, 7.2)."""
    host = url.host_subcomponent
    assert host is not None, "an http address has a host"
    return host if url.is_default_port() else f"{host}:{url.port}"


def redirected(url: URL, location: str) -> str:
    """Return the absolute target of a redirect of `url`, or the header's text if it is no address."""
    try:
        return str(url.join(URL(location)))
    except ValueError:
        return location

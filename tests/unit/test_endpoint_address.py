"""The address that a user writes, and the request lines and Host headers that follow from it."""

from __future__ import annotations

import pytest
from yarl import URL

from muai_lab.errors import RunError
from muai_lab.load.endpoint_address import Api, EndpointAddress, host_header, redirected


@pytest.mark.parametrize(
    ("written", "api", "completions", "models"),
    [
        ("http://h:8000", "chat", "http://h:8000/v1/chat/completions", "http://h:8000/v1/models"),
        ("http://h:8000/", "completions", "http://h:8000/v1/completions", "http://h:8000/v1/models"),
        ("http://h:8000/v1", "completions", "http://h:8000/v1/completions", "http://h:8000/v1/models"),
        ("http://h:8000/v1///", "completions", "http://h:8000/v1/completions", "http://h:8000/v1/models"),
        ("https://h/team a/v1", "chat", "https://h/team%20a/v1/chat/completions", "https://h/team%20a/v1/models"),
        ("https://h/a%2Fb/v1", "chat", "https://h/a%2Fb/v1/chat/completions", "https://h/a%2Fb/v1/models"),
        ("https://h/proxy", "completions", "https://h/proxy/v1/completions", "https://h/proxy/v1/models"),
        (
            "https://r.example.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "chat",
            "https://r.example.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://r.example.com/openai/deployments/d/models?api-version=2024-10-21",
        ),
        (
            "http://h/v1/?a=1&b=x%26y",
            "chat",
            "http://h/v1/chat/completions?a=1&b=x%26y",
            "http://h/v1/models?a=1&b=x%26y",
        ),
        ("http://h/v1/completions/", "completions", "http://h/v1/completions", "http://h/v1/models"),
        ("http://[::1]:8000/v1", "chat", "http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1/models"),
    ],
)
def test_paths_prefixes_slashes_and_queries(written: str, api: Api, completions: str, models: str) -> None:
    address = EndpointAddress.of(written, api)

    assert str(address.completions(api)) == completions
    assert str(address.path("models")) == models


@pytest.mark.parametrize(
    ("written", "header"),
    [
        ("http://h:8000", "h:8000"),
        ("http://h:80", "h"),
        ("https://h:443", "h"),
        ("https://h:80", "h:80"),
        ("http://[::1]", "[::1]"),
        ("http://[2001:db8::1]:8000", "[2001:db8::1]:8000"),
        ("http://bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_the_host_header_has_brackets_and_no_default_port(written: str, header: str) -> None:
    assert host_header(EndpointAddress.of(written, "chat").completions("chat")) == header


@pytest.mark.parametrize(
    ("written", "api", "message"),
    [
        ("host:8000", "chat", "is not an HTTP address"),
        ("ftp://host", "chat", "write it as http://host:port"),
        ("http://", "chat", "is not an HTTP address"),
        ("http://host:99999", "chat", "is not an HTTP address"),
        ("http://me:secret@host", "chat", r"holds a user or a password.*target\.api_key_env"),
        ("http://h/v1/chat/completions", "completions", r"is for workload\.api=chat, but workload\.api is completions"),
        ("http://h/v1/completions", "chat", r"is for workload\.api=completions, but workload\.api is chat"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused(written: str, api: Api, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        EndpointAddress.of(written, api)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "there"),
    [
        ("/new/v1/completions?a=1", "http://h/new/v1/completions?a=1"),
        ("https://other/v1/completions", "https://other/v1/completions"),
        ("http://[broken", "http://[broken"),
    ],
)
def test_a_redirect_is_named_in_full(location: str, there: str) -> None:
    assert redirected(URL("http://h/v1/completions"), location) == there

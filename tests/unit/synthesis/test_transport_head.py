"""What a request says of itself: a server that keeps to the standard refuses one without a host."""

from __future__ import annotations

import httpx
import pytest

from megatron_synE.synthesis.transport import DirectChannel


@pytest.mark.parametrize(
    "url, host",
    [
        ("http://127.0.0.1:8000/v1/chat/completions", b"127.0.0.1:8000"),
        ("http://localhost/v1/chat/completions", b"localhost"),
        ("https://api.example.com/v1/chat/completions", b"api.example.com"),
        ("http://[::1]:8000/v1/chat/completions", b"[::1]:8000"),
    ],
)
def test_every_request_names_its_host(url: str, host: bytes) -> None:
    channel = DirectChannel(httpx.URL(url), {}, connect_seconds=1, timeout_seconds=1)
    assert b"\r\nhost: " + host + b"\r\n" in channel._head.lower()

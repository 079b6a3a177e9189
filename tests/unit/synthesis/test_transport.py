"""HTTP as servers speak it, byte by byte."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable

import httpx
import pytest

from megatron_synE.synthesis.transport import DirectChannel, ProxiedChannel, Reply, open_channel

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


def exchange(*answers: bytes, piece_bytes: int = 0, close: bool = False, timeout_seconds: float = 5.0) -> list[Reply]:
    """What posts over one channel give, the server answering one after the other in pieces of so many bytes."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(requests) < len(answers):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            requests.append(head + await reader.readexactly(length))
            answer = answers[len(requests) - 1]
            for start in range(0, len(answer), piece_bytes or len(answer) or 1):
                writer.write(answer[start : start + (piece_bytes or len(answer))])
                await writer.drain()
                await asyncio.sleep(0)
            if close or not answer:
                break
        writer.close()

    async def run() -> list[Reply]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        channel = DirectChannel(
            httpx.URL(f"http://127.0.0.1:{port}/v1/chat"), {"authorization": "Bearer k"}, 5.0, timeout_seconds
        )
        try:
            return [await channel.post(b'{"n":%d}' % number) for number in range(len(answers))]
        finally:
            await channel.aclose()
            server.close()

    replies = asyncio.run(run())
    assert requests[0].startswith(b"POST /v1/chat HTTP/1.1\r\n") and b"authorization: Bearer k" in requests[0]
    assert requests[0].lower().count(b"content-length") == 1 and b"transfer-encoding" not in requests[0].lower()
    assert [request.partition(b"\r\n\r\n")[2] for request in requests] == [b'{"n":%d}' % n for n in range(len(answers))]
    return replies


@pytest.mark.parametrize("piece_bytes", [0, 1, 7])
@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
    ],
)
def test_answers_arrive_whole_over_one_connection(answer: bytes, piece_bytes: int) -> None:
    assert [reply.body for reply in exchange(answer, answer, piece_bytes=piece_bytes)] == [b"hello", b"hello"]


def test_an_answer_may_end_with_the_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: x\r\n\r\nhello"
    assert [reply.body for reply in exchange(answer, answer, close=True)] == [b"hello", b"hello"]


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    answer = b"HTTP/1.1 503 Busy\r\nconnection: close\r\nRetry-After: 7\r\ncontent-length: 0\r\n\r\n"
    replies = exchange(answer, OK, close=True)
    assert (replies[0].status, replies[0].headers["retry-after"], replies[1].status) == (503, "7", 200)


def test_an_answer_that_is_compressed_unasked_is_read() -> None:
    body = gzip.compress(b"hello")
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert exchange(head + body)[0].body == b"hello"
    with pytest.raises(httpx.RemoteProtocolError, match="content encoding"):
        exchange(OK.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"))


@pytest.mark.parametrize(
    "answer, words",
    [
        (OK[:-1], "before the end"),
        (b"", "before the end"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", "before the end"),
        (b"hello\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "two content lengths"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "no size of a chunk"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", "longer than it says"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "no end of the headers"),
    ],
)
def test_broken_answers_are_errors(answer: bytes, words: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match=words):
        exchange(answer, close=True)


def test_a_silent_server_is_left_after_the_timeout() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        channel = DirectChannel(httpx.URL(f"http://127.0.0.1:{port}/"), {}, 5.0, 0.05)
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout, match=r"no answer in 0\.05 s"):
                await channel.post(b"{}")
        failed = await asyncio.gather(*[channel.post(b"{}") for _ in range(3)], return_exceptions=True)
        assert [type(error) for error in failed] == [httpx.ReadTimeout] * 3
        server.close()

    asyncio.run(run())


def test_a_port_without_a_server_is_an_error_of_connection() -> None:
    async def run() -> None:
        channel = DirectChannel(httpx.URL("http://127.0.0.1:9/"), {}, 5.0, 5.0)
        with pytest.raises(httpx.ConnectError):
            await channel.post(b"{}")

    asyncio.run(run())


def test_the_environment_chooses_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def channel(url: str) -> object:
        async def run() -> object:
            return open_channel(httpx.URL(url), {}, connect_seconds=1.0, timeout_seconds=1.0, window=2)

        return asyncio.run(run())

    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(channel("http://api.example/v1"), DirectChannel)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "localhost")
    assert isinstance(channel("http://api.example/v1"), ProxiedChannel)
    assert isinstance(channel("http://localhost:8000/v1"), DirectChannel)


def test_a_proxy_carries_requests() -> None:
    async def run() -> Reply:
        seen: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(OK)
            await writer.drain()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        channel = ProxiedChannel(httpx.URL("http://api.example/v1"), {"x-y": "z"}, 5.0, 5.0, 2, proxy)
        reply = await channel.post(b"{}")
        assert seen[0].startswith(b"POST http://api.example/v1 HTTP/1.1\r\n") and b"x-y: z" in seen[0].lower()
        await channel.aclose()
        server.close()
        return reply

    assert asyncio.run(run()).body == b"hello"

"""POST requests to one server: over connections of our own, which cost little, or by httpx through a proxy.

httpx looks through all of its connections at every request, so that a request costs more the more are in flight; with
a thousand of them it does little else (benchmarks/synthesize.py). ``DirectChannel`` is HTTP/1.1 with a stack of idle
connections, each an ``asyncio.Protocol``. Both raise httpx's errors.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import httpx

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20
IDLE_SECONDS = 3.0
"""A connection that was idle for longer is closed, not used again: many servers close theirs after 5 s, and a request
that meets the end of its connection may have been paid for."""


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class Channel(Protocol):
    """A way to one URL of a server."""

    async def post(self, body: bytes) -> Reply:
        """Send, and wait for the whole answer.

        Raises:
            httpx.TransportError: no connection, no answer in time, or one that is cut or no HTTP.
        """
        ...

    async def aclose(self) -> None:
        """Close what is idle."""
        ...


def open_channel(
    url: httpx.URL, headers: Mapping[str, str], *, connect_seconds: float, timeout_seconds: float, window: int
) -> Channel:
    """Direct, or by way of the proxy that the environment names for this server (``HTTPS_PROXY``, ``NO_PROXY`` …).

    Args:
        headers: of every request.
        connect_seconds: for a connection to stand, TLS included.
        timeout_seconds: from a request to the last byte of its answer.
        window: most requests at a time.
    """
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy is None or urllib.request.proxy_bypass(url.host):
        return DirectChannel(url, headers, connect_seconds, timeout_seconds)
    return ProxiedChannel(url, headers, connect_seconds, timeout_seconds, window, proxy)


class ProxiedChannel:
    """httpx's own client."""

    def __init__(
        self, url: httpx.URL, headers: Mapping[str, str], connect_seconds: float, timeout_seconds: float, window: int,
        proxy: str,
    ) -> None:  # fmt: skip
        limits = httpx.Limits(max_connections=window, max_keepalive_connections=window, keepalive_expiry=IDLE_SECONDS)
        self._url, self._timeout_seconds = url, timeout_seconds
        timeout = httpx.Timeout(timeout_seconds, connect=connect_seconds)
        self._client = httpx.AsyncClient(headers=headers, proxy=proxy, limits=limits, timeout=timeout)

    async def post(self, body: bytes) -> Reply:
        """See Channel."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._client.post(self._url, content=body)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no answer in {self._timeout_seconds:g} s") from None
        except httpx.DecodingError as error:
            raise httpx.RemoteProtocolError(f"content encoding: {error}") from None
        return Reply(response.status_code, dict(response.headers), response.content)

    async def aclose(self) -> None:
        """See Channel."""
        await self._client.aclose()


class DirectChannel:
    """Keep-alive connections to the server itself, each with one request at a time."""

    def __init__(
        self, url: httpx.URL, headers: Mapping[str, str], connect_seconds: float, timeout_seconds: float
    ) -> None:
        self._host, self._port = url.host, url.port or (443 if url.scheme == "https" else 80)
        self._tls = httpx.create_ssl_context() if url.scheme == "https" else None
        self._connect_seconds, self._timeout_seconds = connect_seconds, timeout_seconds
        # httpx writes and checks the request's head, once; only its length changes from request to request.
        given = {"host": url.netloc.decode("ascii"), **headers, "accept-encoding": "identity"}
        request = httpx.Request("POST", url, headers=given, stream=httpx.ByteStream(b""))
        lines = [b"POST %s HTTP/1.1" % url.raw_path]
        lines += [b"%s: %s" % header for header in request.headers.raw if header[0].lower() != b"transfer-encoding"]
        self._head = b"\r\n".join(lines) + b"\r\ncontent-length: "
        self._idle: list[_Connection] = []
        self._deadlines: dict[_Connection, float] = {}
        """Of the connections with a request, in the order in which they were sent: all have the same time."""
        self._timer: asyncio.TimerHandle | None = None

    async def post(self, body: bytes) -> Reply:
        """See Channel."""
        connection = self._take_idle() or await self._connect()
        self._deadlines[connection] = time.monotonic() + self._timeout_seconds
        if self._timer is None:
            self._watch()
        try:
            reply = await connection.request(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        except BaseException:
            connection.abort()
            raise
        finally:
            del self._deadlines[connection]
        if connection.is_reusable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.abort()
        return reply if "content-encoding" not in reply.headers else _decoded(reply)

    async def aclose(self) -> None:
        """See Channel."""
        if self._timer is not None:
            self._timer.cancel()
        while self._idle:
            self._idle.pop().abort()

    def _watch(self) -> None:
        """Fail the requests whose time is over; one timer for all of them is cheaper than one each."""
        now = time.monotonic()
        next_deadline = next((deadline for deadline in self._deadlines.values() if deadline > now), None)
        for connection in [*itertools.takewhile(lambda own: self._deadlines[own] <= now, self._deadlines)]:
            connection.fail(httpx.ReadTimeout(f"no answer in {self._timeout_seconds:g} s"))
        self._timer = None
        if next_deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(next_deadline - now, self._watch)

    def _take_idle(self) -> _Connection | None:
        earliest = time.monotonic() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and connection.idle_since > earliest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    _Connection, self._host, self._port, ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )  # fmt: skip
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection in {self._connect_seconds:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection


def _decoded(reply: Reply) -> Reply:
    """A reply that was compressed although nobody asked for it."""
    try:
        return reply._replace(body=httpx.Response(200, headers=reply.headers, content=reply.body).content)
    except httpx.DecodingError as error:
        raise httpx.RemoteProtocolError(f"content encoding: {error}") from None


class _Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.is_reusable = True
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._reset()

    def request(self, message: bytes) -> asyncio.Future[Reply]:
        """Send; the future fails with an httpx.TransportError."""
        assert self._transport is not None and self._answer is None
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._reset()
        self._transport.write(message)
        return answer

    def abort(self) -> None:
        """Close at once."""
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.abort()  # bytes that nobody asked for: what comes next on this connection is not to be trusted
            return
        self._buffer += data
        try:
            self._parse()
        except _Malformed as error:
            self.fail(httpx.RemoteProtocolError(str(error)))

    def eof_received(self) -> None:
        self.is_reusable = False
        if self._answer is not None and self._status and self._until_close:
            self._finish(bytes(self._buffer))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_reusable = False
        how = "reset" if error is not None else "closed"
        self.fail(httpx.RemoteProtocolError(f"connection {how} before the end of the answer"))

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._length = 0
        self._is_chunked = self._until_close = False
        self._pieces: list[bytes] = []

    def _parse(self) -> None:
        while not self._status:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise _Malformed("no end of the headers")
                return
            self._parse_head(self._buffer[:end].decode("latin-1"))
            del self._buffer[: end + 4]
        if self._is_chunked:
            self._parse_chunks()
        elif self._until_close:
            if len(self._buffer) > MAX_BODY_BYTES:
                raise _Malformed("the answer is too long")
        elif len(self._buffer) >= self._length:
            self.is_reusable = self.is_reusable and len(self._buffer) == self._length
            self._finish(bytes(self._buffer[: self._length]))

    def _parse_head(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit()):
            raise _Malformed("the answer is no HTTP")
        status = int(code)
        if 100 <= status < 200:
            return  # an announcement; the answer follows
        headers = self._headers
        for line in lines:
            name, colon, value = line.partition(":")
            name, value = name.lower(), value.strip()
            if not colon or not name or (name == "content-length" and headers.get(name, value) != value):
                raise _Malformed("a header without a name, or two content lengths")
            headers[name] = value
        self._status = status
        connection, encoding = headers.get("connection", "").lower(), headers.get("transfer-encoding", "").lower()
        if connection == "close" or (version == "HTTP/1.0" and connection != "keep-alive"):
            self.is_reusable = False
        if encoding:
            if encoding != "chunked":
                raise _Malformed(f"transfer encoding {encoding}")
            self._is_chunked = True
        elif "content-length" in headers:
            length = headers["content-length"]
            if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
                raise _Malformed("the content length is no size of an answer")
            self._length = int(length)
        elif status not in (204, 304):
            self._until_close, self.is_reusable = True, False

    def _parse_chunks(self) -> None:
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise _Malformed("no size of a chunk")
                return
            size_text = bytes(self._buffer[:end]).partition(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                raise _Malformed("no size of a chunk") from None
            if size < 0 or self._length + size > MAX_BODY_BYTES:
                raise _Malformed("the answer is too long")
            if size == 0:
                trailer = 0 if self._buffer.startswith(b"\r\n", end + 2) else self._buffer.find(b"\r\n\r\n", end + 2)
                if trailer < 0 or len(self._buffer) < end + 4:
                    return
                self.is_reusable = self.is_reusable and len(self._buffer) == (trailer or end) + 4
                self._finish(b"".join(self._pieces))
                return
            if len(self._buffer) < end + 2 + size + 2:
                return
            if self._buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                raise _Malformed("a chunk is longer than it says")
            self._pieces.append(bytes(self._buffer[end + 2 : end + 2 + size]))
            self._length += size
            del self._buffer[: end + 4 + size]

    def _finish(self, body: bytes) -> None:
        answer = self._end()
        if answer is not None:
            answer.set_result(Reply(self._status, self._headers, body))

    def fail(self, error: httpx.TransportError) -> None:
        """End the request, if there is one, with this error."""
        self.is_reusable = False
        answer = self._end()
        if answer is not None:
            answer.set_exception(error)

    def _end(self) -> asyncio.Future[Reply] | None:
        answer, self._answer = self._answer, None
        return answer if answer is not None and not answer.done() else None


class _Malformed(Exception):
    """Bytes that are no HTTP/1.1."""

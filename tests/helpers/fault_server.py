"""An OpenAI-compatible server that misbehaves in stated ways, made of the standard library.

What it answers depends on the request alone; which fault a request meets depends on the request and on how often it has
come. So a run against it ends the same, whatever the order in which its requests came.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

MODEL = "toy-1"
FAULTS = (
    "429", "429 retry-after", "429 retry-after date", "500", "503", "stall", "reset", "cut", "malformed",
    "content type", "no choice",
)  # fmt: skip
"""A request meets one of these, and another try may not."""
ANSWER_FAULTS = ("empty", "unparsable", "length")
"""An answer that is no use; another seed may do better."""
LASTING_FAULTS = ("refusal", "400")
"""Whatever the try: of all requests with the same messages."""


@dataclass
class Behaviour:
    """What the server does; may be changed while it runs."""

    faults: Mapping[str, float] = field(default_factory=dict)
    """Fault → share of the requests."""
    latency_seconds: float = 0.0
    start_requests: int = 0
    """So many requests, of any kind, are told that the server is still starting."""
    rate: float | None = None
    """Requests a second that are admitted; others get 429."""
    rate_window_seconds: float = 0.0
    """0: the rate is even, with a burst of a tenth of a second; else so many at the start of each window."""
    retry_after: bool = False
    """Whether 429 of the rate says when to come again."""
    key: str | None = None
    """Bearer token that it wants."""
    path: str = "/v1"
    error: tuple[int, dict[str, str]] | None = None
    """Status and `error` of all answers to chat completions."""


class FaultServer:
    """The server, in a thread of its own.

    Attributes:
        paid: requests that were answered in full, by the hash of their body.
        num_requests: by what they met.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.paid: Counter[bytes] = Counter()
        self.num_requests: Counter[str] = Counter()
        self.most_in_flight = self.in_flight = 0
        self.heads: list[bytes] = []
        """Of the first requests."""
        self.port = 0
        self._seen: Counter[bytes] = Counter()
        self._tokens, self._tokens_at = 0.0, time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}{self.behaviour.path}"

    def run(self, is_up: threading.Event, port: int = 0) -> None:
        """Serve until `stop`."""
        self._loop.run_until_complete(self._run(is_up, port))

    def stop(self) -> None:
        """From another thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _run(self, is_up: threading.Event, port: int) -> None:
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        is_up.set()
        await self._stop.wait()
        server.close()

    def admits(self) -> bool:
        """Whether the rate has room for another request."""
        behaviour, now = self.behaviour, time.monotonic()
        if behaviour.rate is None:
            return True
        if behaviour.rate_window_seconds:
            if now >= self._tokens_at + behaviour.rate_window_seconds:
                self._tokens, self._tokens_at = behaviour.rate * behaviour.rate_window_seconds, now
        else:
            gained = (now - self._tokens_at) * behaviour.rate
            self._tokens, self._tokens_at = min(self._tokens + gained, max(behaviour.rate / 10, 1.0)), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def fault_of(self, body: bytes) -> str:
        """What this request meets; empty for nothing."""
        digest = hashlib.sha256(body).digest()
        self._seen[digest] += 1
        request = json.loads(body)
        lasting = _share("lasting", json.dumps(request["messages"]))
        of_answer = _share("answer", body)
        of_try = _share("try", body, self._seen[digest])
        for names, share in ((LASTING_FAULTS, lasting), (FAULTS, of_try), (ANSWER_FAULTS, of_answer)):
            for name in names:
                share -= self.behaviour.faults.get(name, 0.0)
                if share < 0:
                    return name
        return ""


@contextmanager
def fault_server(behaviour: Behaviour | None = None, port: int = 0) -> Iterator[FaultServer]:
    """A server that runs while the block does."""
    server, is_up = FaultServer(behaviour or Behaviour()), threading.Event()
    thread = threading.Thread(target=server.run, args=(is_up, port), daemon=True)
    thread.start()
    assert is_up.wait(30)
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)


def answer_text(messages: list[dict[str, str]], seed: int) -> str:
    """What the server answers to a sound request."""
    return f"Problem: {_share(messages[-1]['content'], seed)}\nEND"


def _share(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little") / 2**56


class _Connection(asyncio.Protocol):
    def __init__(self, server: FaultServer) -> None:
        self.server, self.buffer = server, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        num_bytes = int(lengths[0]) if lengths else 0
        if len(rest) < num_bytes:
            return
        self.buffer = rest[num_bytes:]
        if len(self.server.heads) < 100:
            self.server.heads.append(head)
        self.answer(head, rest[:num_bytes])

    def answer(self, head: bytes, body: bytes) -> None:
        behaviour = self.server.behaviour
        wanted = f"authorization: bearer {behaviour.key}".lower().encode()
        method, path, _ = head.split(b"\r\n")[0].split(b" ")
        if behaviour.start_requests > 0:
            behaviour.start_requests -= 1
            self.reply(503, {"error": "starting"})
        elif behaviour.key is not None and wanted not in head.lower():
            shown = head.lower().partition(b"authorization: ")[2].partition(b"\r\n")[0].decode()
            self.reply(401, {"error": {"message": f"Incorrect key: {shown}", "code": "invalid_api_key"}})
        elif path == f"{behaviour.path}/models".encode():
            self.reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}, {"id": "other"}]})
        elif path != f"{behaviour.path}/chat/completions".encode() or method != b"POST":
            self.reply(404, {"detail": "Not Found"})
        else:
            self.chat(body)

    def chat(self, body: bytes) -> None:
        server, behaviour = self.server, self.server.behaviour
        if behaviour.error is not None:
            status, error = behaviour.error
            self.reply(status, {"error": error})
            return
        if not server.admits():
            server.num_requests["refused by rate"] += 1
            self.reply(429, {"error": {"message": "slow down"}}, "retry-after: 1\r\n" if behaviour.retry_after else "")
            return
        fault = server.fault_of(body)
        server.num_requests[fault or "sound"] += 1
        if fault == "stall":
            return
        if fault == "reset":
            self.transport.abort()
            return
        server.in_flight += 1
        server.most_in_flight = max(server.most_in_flight, server.in_flight)
        if behaviour.latency_seconds:
            asyncio.get_running_loop().call_later(behaviour.latency_seconds, self.completion, body, fault)
        else:
            self.completion(body, fault)

    def completion(self, body: bytes, fault: str) -> None:
        self.server.in_flight -= 1
        if self.transport.is_closing():
            return  # of a client that was killed
        if fault.startswith("429"):
            until = formatdate(time.time() + 1, usegmt=True) if fault.endswith("date") else "0"
            header = f"retry-after: {until}\r\n" if "retry-after" in fault else ""
            self.reply(429, {"error": {"message": "slow down"}}, header)
        elif fault in ("500", "503"):
            self.reply(int(fault), {"error": {"message": "broken"}})
        elif fault == "400":
            self.reply(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
        else:
            self.sound_or_broken(body, fault)

    def sound_or_broken(self, body: bytes, fault: str) -> None:
        request = json.loads(body)
        text: str | None = answer_text(request["messages"], request["seed"])
        texts = {"empty": "", "unparsable": "Problem: half of it", "refusal": None}
        message = {"role": "assistant", "content": texts.get(fault, text)}
        if fault == "refusal":
            message["refusal"] = "I cannot"
        content: dict[str, object] = {
            "id": "chatcmpl-1", "object": "chat.completion", "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "length" if fault == "length" else "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 20},
        }  # fmt: skip
        if fault == "no choice":
            content["choices"] = []
        encoded = json.dumps(content).encode()
        kind = "text/html" if fault == "content type" else "application/json"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(encoded)}\r\n\r\n".encode()
        if fault == "malformed":
            encoded = encoded[:-20] + b" " * 20
        if fault == "cut":
            self.transport.write(head + encoded[: len(encoded) // 2])
            self.transport.close()
            return
        if fault not in FAULTS:
            self.server.paid[hashlib.sha256(body).digest()] += 1
        self.transport.write(head + encoded)

    def reply(self, status: int, content: object, header: str = "") -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{header}content-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

"""Throughput, manners and memory of a synthesis run, against a server in a process of its own.

    python benchmarks/synthesize.py [--latency 0.05] [--seconds 20] [--rate 200] [--only NAME ...]

The server answers after so many seconds, whatever it is asked, and cost this machine the least that Python can do; it
shares the machine with the run, so that more cores than two make better figures.

    window_use_64, window_use_1024  answers a second, relative to window ÷ latency, from the first answer to the last
    floor_1024        the same of a loop that sends and reads the same bytes over as many connections and does no more:
                      what this machine, with this server, allows at the time (the two take turns)
    httpx_use_64      the same of httpx's own client in the place of ours, at a window of 64
    limited_rate_use  answers a second of a server that admits --rate requests a second and refuses others with 429,
                      relative to that rate, over two minutes
    peak_mb_1e4, peak_mb_1e6  most resident memory of the run's process, in 10^6 bytes, by the number of snippets
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import orjson
from host import peak_memory_mb, processor_name

from megatron_synE.config.synthesis import EndpointConfig, PaceConfig, SynthesisConfig
from megatron_synE.synthesis.folder import JobFolder, durable_file
from megatron_synE.synthesis.run import run_job
from megatron_synE.synthesis.task import Accepted, Snippet, Task

MODEL = "model"
SHARD_ROWS = 4096
SNIPPET_CHARACTERS, ANSWER_CHARACTERS = 1000, 1500
PROGRAM = str(Path(__file__).resolve())


class Server(asyncio.Protocol):
    """Answers after `latency_seconds`; of more requests than `rate` a second it refuses the rest."""

    latency_seconds = 0.05
    rate: float | None = None
    num_answers = 0
    first_answer = last_answer = 0.0
    allowance = allowance_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.buffer = transport, b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer = buffer = self.buffer + data if self.buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        place = buffer.lower().find(b"content-length:", 0, end)
        length = int(buffer[place + 15 : buffer.find(b"\r\n", place)]) if place >= 0 else 0
        if len(buffer) < end + 4 + length:
            return
        self.buffer = buffer[end + 4 + length :]
        if buffer.startswith(b"GET"):
            self.transport.write(_response({"data": [{"id": MODEL}]}))
        elif self.admits():
            self.loop.call_later(Server.latency_seconds, self.answer)
        else:
            self.transport.write(REFUSAL)

    def admits(self) -> bool:
        if Server.rate is None:
            return True
        now = time.monotonic()
        gained = (now - Server.allowance_at) * Server.rate
        Server.allowance, Server.allowance_at = min(Server.allowance + gained, Server.rate), now
        if Server.allowance < 1:
            return False
        Server.allowance -= 1
        return True

    def answer(self) -> None:
        Server.num_answers += 1
        Server.last_answer = time.monotonic()
        Server.first_answer = Server.first_answer or Server.last_answer
        self.transport.write(ANSWER)


def _response(content: Any, status: bytes = b"200 OK") -> bytes:
    body = orjson.dumps(content)
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    return head + body


ANSWER = _response({
    "id": "1", "object": "chat.completion", "model": MODEL, "usage": {"prompt_tokens": 300, "completion_tokens": 400},
    "choices": [{"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "a" * ANSWER_CHARACTERS}}],
})  # fmt: skip
REFUSAL = _response({"error": {"message": "slow down"}}, b"429 Too Many Requests")


def serve(pipe: Connection, latency_seconds: float, rate: float | None) -> None:
    """The server's process: sends its port; told anything, sends answers and the times of the first and the last."""
    Server.latency_seconds, Server.rate = latency_seconds, rate

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Server, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.recv)
        pipe.send((Server.num_answers, Server.first_answer, Server.last_answer))

    asyncio.run(run())


class Served:
    """A server's process, for one measurement."""

    def __init__(self, latency_seconds: float, rate: float | None = None) -> None:
        self._pipe, other = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=serve, args=(other, latency_seconds, rate), daemon=True)
        self._process.start()
        self.port: int = self._pipe.recv()

    def answers_per_second(self) -> float:
        """End it."""
        self._pipe.send(None)
        num_answers, first, last = self._pipe.recv()
        self._process.join()
        rate: float = num_answers / max(last - first, 1e-9)
        return rate


class PlainTask:
    """Keeps every answer."""

    kind, fingerprint, is_slow = "plain", "1", False

    def messages(self, snippet: Snippet) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Make a problem of this: {snippet.text}"}]

    def judge(self, snippet: Snippet, answer: str, finish_reason: str) -> Accepted:
        return Accepted({"text": answer})


class PlainTasks:
    """One for all."""

    task = PlainTask()

    def kinds(self) -> Sequence[Task]:
        return [self.task]

    def of(self, snippet: Snippet) -> Task:
        return self.task


def write_snippets(root: Path, num_snippets: int) -> None:
    """A job's snippets."""
    folder, text = JobFolder(root), "x" * SNIPPET_CHARACTERS
    for first in range(0, num_snippets, SHARD_ROWS):
        with durable_file(folder.snippets(first // SHARD_ROWS)) as file:
            for number in range(first, min(first + SHARD_ROWS, num_snippets)):
                row = {"id": f"web:{number}", "text": f"{number} {text}", "source": {}}
                file.write(orjson.dumps({**row, "discipline": None, "language": "en"}) + b"\n")
    with durable_file(folder.manifest) as file:
        file.write(orjson.dumps({"num_snippets": num_snippets, "shard_rows": SHARD_ROWS}))


def take_part(root: str, port: str, window: str) -> None:
    """A run's process."""
    endpoint = EndpointConfig(f"http://127.0.0.1:{port}/v1", MODEL, None)
    run_job(SynthesisConfig(job=root, endpoint=endpoint, pace=PaceConfig(window=int(window))), PlainTasks())
    print(json.dumps({"peak_mb": peak_memory_mb(), "cpu_seconds": time.process_time()}))


def _request_body(number: int) -> bytes:
    text = f"Make a problem of this: {number} {'x' * SNIPPET_CHARACTERS}"
    messages = [{"role": "user", "content": text}]
    return orjson.dumps({"model": MODEL, "messages": messages, "temperature": 0.7, "seed": 1})


def bare_loop(num_requests: str, port: str, window: str) -> None:
    """Sends and reads the same bytes, and looks at none of them."""
    left = int(num_requests)
    body = _request_body(0)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)

    async def run() -> None:
        ended = asyncio.Event()

        class Client(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                self.transport, self.missing = transport, 0
                self.send()

            def send(self) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    if left == -int(window):
                        ended.set()
                    return
                self.missing = len(ANSWER)
                self.transport.write(head + body)

            def data_received(self, data: bytes) -> None:
                self.missing -= len(data)
                if self.missing == 0:
                    self.send()

        loop = asyncio.get_running_loop()
        await asyncio.gather(*[loop.create_connection(Client, "127.0.0.1", int(port)) for _ in range(int(window))])
        await ended.wait()

    asyncio.run(run())
    print(json.dumps({"cpu_seconds": time.process_time()}))


def httpx_loop(num_requests: str, port: str, window: str) -> None:
    """httpx's client, and no more than reading its answers."""
    left = int(num_requests)

    async def run() -> None:
        limits = httpx.Limits(max_connections=int(window), max_keepalive_connections=int(window))
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:

            async def work() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    response = await client.post(f"http://127.0.0.1:{port}/v1/x", content=_request_body(left))
                    orjson.loads(response.content)

            await asyncio.gather(*[work() for _ in range(int(window))])

    asyncio.run(run())
    print(json.dumps({"cpu_seconds": time.process_time()}))


PARTS = {"run": take_part, "bare": bare_loop, "httpx": httpx_loop}


def start(part: str, *arguments: object) -> subprocess.Popen[str]:
    """A part of a measurement in a process of its own."""
    command = [sys.executable, PROGRAM, "--part", part, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def end(process: subprocess.Popen[str]) -> dict[str, float]:
    """What it found."""
    out, _ = process.communicate()
    assert process.returncode == 0, f"{process.args} ended with {process.returncode}"
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def measure_run(
    num_snippets: int, window: int, latency: float, num_processes: int = 1
) -> tuple[float, dict[str, float]]:
    """Answers a second of a whole job, and what its (first) process says."""
    with tempfile.TemporaryDirectory() as name:
        write_snippets(Path(name) / "job", num_snippets)
        os.sync()
        server = Served(latency)
        runs = [start("run", f"{name}/job", server.port, window // num_processes) for _ in range(num_processes)]
        found = [end(run) for run in runs]
        return server.answers_per_second(), found[0]


def measure_loop(part: str, num_requests: int, window: int, latency: float) -> tuple[float, dict[str, float]]:
    """The same of a loop."""
    server = Served(latency)
    found = end(start(part, num_requests, server.port, window))
    return server.answers_per_second(), found


def measure_limited(rate: float, seconds: float, latency: float) -> float:
    """Answers a second of a server that limits them."""
    with tempfile.TemporaryDirectory() as name:
        write_snippets(Path(name) / "job", int(rate * seconds))
        server = Served(latency, rate)
        end(start("run", f"{name}/job", server.port, 64))
        return server.answers_per_second()


def measure(names: Sequence[str], arguments: argparse.Namespace) -> dict[str, float]:
    """All figures asked for; a line of each is printed on the way."""
    figures: dict[str, float] = {}

    def note(name: str, value: float, told: str) -> None:
        figures[name] = round(value, 3)
        print(f"{name:18} {value:8.3f}  {told}", flush=True)

    latency = arguments.latency
    for window in (64, 1024):
        allowed = window / latency
        num = int(allowed * arguments.seconds)
        if f"window_use_{window}" in names:
            processes = arguments.processes if window > 64 else 1
            rate, found = measure_run(num, window, latency, processes)
            cpu = found["cpu_seconds"] * 1e6 * processes / num
            told = f"{rate:,.0f} answers/s of {allowed:,.0f}, {cpu:.0f} µs of processor each"
            note(f"window_use_{window}", rate / allowed, told)
        if window == 1024 and "floor_1024" in names:
            rate, _ = measure_loop("bare", num, window, latency)
            note("floor_1024", rate / allowed, f"{rate:,.0f} answers/s of a loop that does nothing else")
        if window == 64 and "httpx_use_64" in names:
            num = min(num, 5000)
            rate, found = measure_loop("httpx", num, window, latency)
            note("httpx_use_64", rate / allowed, f"{found['cpu_seconds'] * 1e6 / num:.0f} µs of processor each")
    if "limited_rate_use" in names:
        rate = measure_limited(arguments.rate, 120.0, latency)
        note("limited_rate_use", rate / arguments.rate, f"{rate:.1f} answers/s of {arguments.rate:g}")
    for name, num in (("peak_mb_1e4", 10_000), ("peak_mb_1e6", 1_000_000)):
        if name in names:
            rate, found = measure_run(num, 64, 0.0)
            note(name, found["peak_mb"], f"{rate:,.0f} answers/s without latency")
    return figures


FIGURES = ("window_use_64", "httpx_use_64", "window_use_1024", "floor_1024", "limited_rate_use", "peak_mb_1e4",
           "peak_mb_1e6")  # fmt: skip


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds until the server answers")
    parser.add_argument("--seconds", type=float, default=20.0, help="of work at full use, for each window")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the server that refuses")
    parser.add_argument("--processes", type=int, default=2, help="that share the job and the window of 1,024")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=FIGURES)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        PARTS[arguments.part[0]](*arguments.part[1:])
        return
    print(f"{processor_name()}, {multiprocessing.cpu_count()} cores")
    print(json.dumps(measure(arguments.only, arguments)))


if __name__ == "__main__":
    main()

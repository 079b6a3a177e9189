"""Prompts continued by an OpenAI-compatible server (`/v1/completions`): vLLM, SGLang, llama.cpp and others.

A prompt goes as token ids, so that it is the one that is scored, BOS policy and all. Text comes back: the server's
tokenizer makes it, and its model must be the evaluated one.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from megatron_synE.evaluation.engines.generators import Prompt, cut

NUM_CONCURRENT = 16
MAX_TRIES = 8
TIMEOUT_SECONDS = 600.0
CONNECT_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 60.0
TRANSIENT_STATUSES = {408, 409, 425, 429}
MAX_STOPS = 4
"""What OpenAI's interface takes; the answer is cut at all stops anyway."""
SHOWN_CHARACTERS = 300


class EndpointGenerator:
    """Continues prompts by a server.

    Args:
        base_url: up to and with `/v1`.
        model: its name there; None takes the only one that the server has.
        key_variable: the environment's variable with the key; None for a server that wants none.

    Raises:
        ValueError: the server cannot be reached, has no such model, or the key is not set.
    """

    def __init__(self, base_url: str, model: str | None = None, key_variable: str | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        headers = {}
        if key_variable is not None:
            key = os.environ.get(key_variable, "").strip()
            if not key:
                raise ValueError(f"--endpoint-key-variable {key_variable}: it is not set; export it")
            headers["authorization"] = f"Bearer {key}"
        timeout = httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=NUM_CONCURRENT, max_keepalive_connections=NUM_CONCURRENT)
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits)
        self._is_over = threading.Event()
        self._model = self._choose(model)

    def info(self) -> dict[str, Any]:
        """See Generator."""
        return {"type": "endpoint", "url": self._base_url, "model": self._model}

    def generate(self, prompts: Sequence[Prompt], on_done: Callable[[int, str], None]) -> None:
        """See Generator.

        Raises:
            ValueError: the server refuses a prompt, or does not answer any more.
        """
        with concurrent.futures.ThreadPoolExecutor(NUM_CONCURRENT) as pool:
            numbers = {pool.submit(self._continue, prompt): number for number, prompt in enumerate(prompts)}
            try:
                for future in concurrent.futures.as_completed(numbers):
                    on_done(numbers[future], future.result())
            except BaseException:
                self._is_over.set()  # no further tries
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        """See Generator."""
        self._client.close()

    def _choose(self, model: str | None) -> str:
        url = f"{self._base_url}/models"
        answer = self._ask(lambda: self._client.get(url, timeout=CONNECT_SECONDS), url)
        try:
            names = [str(entry["id"]) for entry in answer["data"]]
        except (KeyError, TypeError):
            raise ValueError(f"--generate-with {self._base_url}: {url} gives no list of models") from None
        if model is None and len(names) == 1:
            return names[0]
        if model is None or model not in names:
            wanted = "name one with --endpoint-model" if model is None else f"--endpoint-model {model} is none of them"
            raise ValueError(f"--generate-with {self._base_url}: has the models {', '.join(names[:8])}; {wanted}")
        return model

    def _continue(self, prompt: Prompt) -> str:
        url = f"{self._base_url}/completions"
        content: dict[str, Any] = {
            "model": self._model, "prompt": list(prompt.ids), "max_tokens": prompt.max_new_tokens, "temperature": 0.0,
        }  # fmt: skip
        if prompt.stops:
            content["stop"] = list(prompt.stops[:MAX_STOPS])
        answer = self._ask(lambda: self._client.post(url, json=content), url)
        try:
            text = answer["choices"][0]["text"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"--generate-with {self._base_url}: {url} gives an answer without a text")
        return cut(text, prompt.stops)

    def _ask(self, send: Callable[[], httpx.Response], url: str) -> Any:
        """The JSON of an answer, after as many tries as it takes.

        Raises:
            ValueError: no try succeeded, or none can.
        """
        trouble = ""
        for number in range(MAX_TRIES):
            if number:
                pause = min(FIRST_PAUSE_SECONDS * 2**number, MAX_PAUSE_SECONDS)
                if self._is_over.wait(pause * random.uniform(0.5, 1.0)):
                    break
            try:
                response = send()
                if response.status_code == 200:
                    return response.json()
                trouble = f"status {response.status_code}: {response.text[:SHOWN_CHARACTERS]}"
            except httpx.TransportError as error:
                trouble = str(error) or type(error).__name__
                continue
            except ValueError:
                trouble = "an answer that is no JSON"
                continue
            if response.status_code < 500 and response.status_code not in TRANSIENT_STATUSES:
                raise ValueError(f"--generate-with {self._base_url}: {url} refuses: {trouble}")
        raise ValueError(
            f"--generate-with {self._base_url}: {url}: {trouble}, {MAX_TRIES} times; when the server is up, start the "
            "evaluation again: it goes on where it was"
        )

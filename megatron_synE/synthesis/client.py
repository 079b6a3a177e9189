"""Chat completions of an OpenAI-compatible server: what is sent, and which of three classes a failure belongs to.

| class | what it is | what follows |
| --- | --- | --- |
| transient | 408, 409, 425, 429, 5xx, timeout, reset, a cut or malformed answer | the request is made again |
| permanent | another 4xx, an answer that was refused | the snippet has failed |
| content | an answer without use: unparsable, too short, cut by length | asked again with another seed, then failed |

What concerns every request alike (the key, the URL, the model, the credit) ends the run: ``EndpointError``.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx
import orjson

from megatron_synE.config.synthesis import EndpointConfig, SamplingConfig
from megatron_synE.synthesis.transport import Channel, Reply, open_channel

TRANSIENT_STATUSES = {408, 409, 425, 429}
MAX_RETRY_AFTER_SECONDS = 3600.0
POLL_SECONDS = 1.0
SHOWN_CHARACTERS = 300
SHOWN_MODELS = 8


class EndpointError(ValueError):
    """The server, as configured, serves no request of this job."""


class TransientError(Exception):
    """The same request may succeed later; the message is a short name that can be counted.

    Attributes:
        is_refusal: by a rate limit.
        is_overload: a sign of too much load: 5xx or no answer in time.
        retry_after_seconds: what the server asks to wait for.
    """

    def __init__(
        self, reason: str, *, is_refusal: bool = False, is_overload: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.is_refusal, self.is_overload, self.retry_after_seconds = is_refusal, is_overload, retry_after_seconds


class PermanentError(Exception):
    """The same request will never succeed.

    Args:
        reason: a short name that can be counted.
        detail: what the server said.
    """

    def __init__(self, reason: str, detail: str, status: int) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.status = reason, detail, status


class Answer(NamedTuple):
    """One choice, paid for."""

    text: str | None
    """None where the message has none."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    is_refused: bool
    """By the model or by a filter."""


class ChatClient:
    """Asks one model of one server.

    Args:
        window: most requests at a time.

    Raises:
        EndpointError: the environment has no key.
    """

    def __init__(self, endpoint: EndpointConfig, sampling: SamplingConfig, window: int) -> None:
        self._endpoint = endpoint
        self._key = _key(endpoint)
        self._url = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            self._headers["authorization"] = f"Bearer {self._key}"
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
        given = {name: value for name, value in fields.items() if value is not None}
        self._fields = {"model": endpoint.model, **given, **sampling.extra}
        self._channel: Channel = open_channel(
            httpx.URL(self._url), self._headers, connect_seconds=endpoint.connect_seconds,
            timeout_seconds=endpoint.timeout_seconds, window=window,
        )  # fmt: skip

    async def ask(self, messages: list[dict[str, str]], seed: int) -> Answer:
        """One request.

        Raises:
            TransientError, PermanentError, EndpointError: see above.
        """
        body = orjson.dumps({**self._fields, "messages": messages, "seed": seed})
        try:
            reply = await self._channel.post(body)
        except httpx.TimeoutException:
            raise TransientError("timeout", is_overload=True) from None
        except httpx.ConnectError as error:
            raise TransientError(f"no connection: {error}") from None
        except httpx.TransportError as error:
            raise TransientError(str(error) or type(error).__name__) from None
        return _answer(reply) if reply.status == 200 else self._raise(reply)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._channel.aclose()

    async def check(self, say: Callable[[str], None]) -> None:
        """Whether the server can be reached with this key and has this model, before anything is paid.

        A server that is still starting is waited for.

        Args:
            say: is told what is waited for.

        Raises:
            EndpointError: it cannot.
        """
        deadline, waits = time.monotonic() + self._endpoint.start_seconds, False
        url = f"{self._endpoint.base_url.rstrip('/')}/models"
        timeout = httpx.Timeout(self._endpoint.connect_seconds)
        async with httpx.AsyncClient(headers=self._headers, timeout=timeout) as http:
            while True:
                try:
                    response = await http.get(url)
                    trouble = f"status {response.status_code}" if response.status_code in (429, 500, 502, 503) else ""
                except httpx.TransportError as error:
                    trouble = str(error) or type(error).__name__
                    if _is_unknown_host(error):
                        raise EndpointError(f"endpoint.base_url: {url}: {trouble}; correct it") from None
                if not trouble:
                    break
                if time.monotonic() > deadline:
                    raise EndpointError(
                        f"endpoint.base_url: {url}: {trouble}, for {self._endpoint.start_seconds:g} s "
                        "(endpoint.start_seconds); start the server, or correct the URL"
                    )
                if not waits:
                    say(f"{url}: {trouble}; waiting up to {self._endpoint.start_seconds:g} s for the server")
                waits = True
                await asyncio.sleep(POLL_SECONDS)
        self._check_models(url, response)

    def _check_models(self, url: str, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise self._key_error(response.status_code, response.content)
        if response.is_redirect:
            raise EndpointError(f"endpoint.base_url: {url} moved to {response.headers.get('location')}; write that")
        if response.status_code != 200:
            return  # no list; the first request will tell
        try:
            names = [str(entry["id"]) for entry in orjson.loads(response.content)["data"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            kind = response.headers.get("content-type", "no content type")
            raise EndpointError(
                f"endpoint.base_url: {url} gives no list of models ({kind}); is it an OpenAI-compatible server, and is "
                "/v1 missing at the end of the URL?"
            ) from None
        if self._endpoint.check_model and self._endpoint.model not in names:
            near = difflib.get_close_matches(self._endpoint.model, names, n=SHOWN_MODELS, cutoff=0.3)
            listed = ", ".join(near or names[:SHOWN_MODELS]) or "none"
            raise EndpointError(
                f"endpoint.model: {self._endpoint.model} is not at {url}, which has {listed}; correct it, or set "
                "endpoint.check_model: false where the list is not complete"
            )

    def _raise(self, reply: Reply) -> Answer:
        """The failure that a status other than 200 is."""
        status = reply.status
        code, detail = _error_of(reply.body)
        detail = self._without_key(detail)
        if status == 401:
            raise self._key_error(status, reply.body)
        if status == 402 or code == "insufficient_quota":
            raise EndpointError(f"{self._url}: no credit left (status {status}: {detail}); add some and start again")
        if status in TRANSIENT_STATUSES or status >= 500:
            raise TransientError(
                f"status {status}", is_refusal=status == 429, is_overload=status >= 500,
                retry_after_seconds=_retry_after_seconds(reply.headers),
            )  # fmt: skip
        if 300 <= status < 400:
            raise EndpointError(f"endpoint.base_url: {self._url} moved to {reply.headers.get('location')}; write that")
        if status < 300:
            raise TransientError(f"status {status}")
        raise PermanentError(self._without_key(f"status {status} {code}".strip()), detail, status)

    def endpoint_error(self, error: PermanentError) -> EndpointError:
        """What a permanent failure says where all requests meet it."""
        hints = {
            403: "check the key's rights",
            404: "check endpoint.base_url (is /v1 missing at its end?) and endpoint.model",
            405: "check endpoint.base_url: it takes no chat completions",
        }
        hint = hints.get(error.status, "check endpoint.model, sampling and the prompts")
        return EndpointError(f"{self._url}: {error.reason}: {error.detail or 'no reason given'}; {hint}")

    def _key_error(self, status: int, body: bytes) -> EndpointError:
        variable = self._endpoint.api_key_variable
        held = f"the key in {variable} is refused" if variable else "a key is asked for: name its variable"
        detail = self._without_key(_error_of(body)[1])
        where = f"{held} by {self._endpoint.base_url}"
        return EndpointError(f"endpoint.api_key_variable: {where} (status {status}: {detail})")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _key(endpoint: EndpointConfig) -> str | None:
    if endpoint.api_key_variable is None:
        return None
    key = os.environ.get(endpoint.api_key_variable, "").strip()
    if not key:
        raise EndpointError(
            f"endpoint.api_key_variable: {endpoint.api_key_variable} is not set; export it, or write "
            "`api_key_variable: null` for a server that wants no key"
        )
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(f"endpoint.api_key_variable: {endpoint.api_key_variable} holds no key; export it again")
    return key


def _answer(reply: Reply) -> Answer:
    """The first choice of a whole, sound answer."""
    if not reply.headers.get("content-type", "").lower().startswith("application/json"):
        raise TransientError("answer of another content type")
    try:
        content = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        raise TransientError("malformed answer") from None
    try:
        choice = content["choices"][0]
        message, usage = choice["message"], content.get("usage") or {}
        text, refusal = message.get("content"), message.get("refusal")
        finish_reason = choice.get("finish_reason") or ""
        prompt_tokens, completion_tokens = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    except (KeyError, IndexError, TypeError, AttributeError):
        raise TransientError("answer without a choice") from None
    if not (text is None or isinstance(text, str)) or not isinstance(finish_reason, str):
        raise TransientError("malformed answer")
    if not all(type(count) is int and count >= 0 for count in (prompt_tokens, completion_tokens)):
        raise TransientError("malformed usage")
    is_refused = bool(refusal) or finish_reason == "content_filter"
    return Answer(text, finish_reason, prompt_tokens, completion_tokens, is_refused)


def _error_of(body: bytes) -> tuple[str, str]:
    """Code and message of the `error` in an answer; empty where it has none."""
    try:
        content: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", body[:SHOWN_CHARACTERS].decode("utf-8", "replace")
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return "", str(error)[:SHOWN_CHARACTERS]
    code = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    message = error.get("message") or error.get("detail") or ""
    return (code if isinstance(code, str) else "")[:40], str(message)[:SHOWN_CHARACTERS]


def _retry_after_seconds(headers: dict[str, str]) -> float | None:
    """What ``Retry-After`` asks for, in either of its forms."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            until = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    if seconds != seconds:
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _is_unknown_host(error: BaseException) -> bool:
    """Whether a name could not be resolved, by the chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_NONAME
        cause = cause.__cause__ or cause.__context__
    return False

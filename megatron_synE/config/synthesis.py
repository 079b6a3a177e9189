"""Sections of a synthesis job: which server, how it is asked, how fast, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from megatron_synE.config.answers import AnswersConfig
from megatron_synE.config.snippets import SnippetsConfig


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server: a vendor's, or vLLM on one's own GPUs."""

    base_url: str = ""
    """What stands before `/chat/completions`, as `http://localhost:8000/v1`. Proxies are the environment's."""
    model: str = ""
    """Name of the model as the server knows it."""
    api_key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null for a server without. The key itself stands in no file."""
    check_model: bool = True
    """Whether the model must be in the list that the server gives at `/models`, where it gives one."""
    connect_seconds: float = 20.0
    """For a connection to stand."""
    timeout_seconds: float = 600.0
    """From a request to the last byte of its answer."""
    start_seconds: float = 600.0
    """How long a server may take to start, at the run's own start: until it accepts connections and answers."""

    def problems(self) -> list[str]:
        """Values that cannot be."""
        found = []
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            found.append(f"endpoint.base_url: {self.base_url!r} is no URL; write for instance http://localhost:8000/v1")
        elif url.username or url.password or url.query:
            found.append("endpoint.base_url: holds a user, a password or a query; write host, port and path only")
        elif url.path.rstrip("/").endswith("/chat/completions"):
            found.append("endpoint.base_url: ends in /chat/completions; leave that out")
        if not self.model:
            found.append("endpoint.model: empty; give the model's name as the server knows it")
        if self.api_key_variable is not None and not self.api_key_variable.isidentifier():
            found.append("endpoint.api_key_variable: no name of an environment variable; give that, never the key")
        for name in ("connect_seconds", "timeout_seconds"):
            if not getattr(self, name) > 0:
                found.append(f"endpoint.{name}: {getattr(self, name)} is not positive")
        if self.start_seconds < 0:
            found.append(f"endpoint.start_seconds: {self.start_seconds} is negative; use 0 to not wait")
        return found


@dataclass(frozen=True)
class SamplingConfig:
    """How the model answers. All of it is in each request's identity."""

    temperature: float | None = 0.7
    """null leaves it to the server."""
    top_p: float | None = None
    """null leaves it to the server."""
    max_tokens: int | None = 2048
    """Most tokens of an answer; null leaves it to the server."""
    seed: int = 1234
    """With the snippet and its prompt it makes the seed that is sent; each further try of a snippet sends one more."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request as they are, for instance `{max_completion_tokens: 4096}`."""

    def problems(self) -> list[str]:
        """Values that cannot be."""
        found = []
        if self.temperature is not None and not 0 <= self.temperature <= 10:
            found.append(f"sampling.temperature: {self.temperature} is not in [0, 10]")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            found.append(f"sampling.top_p: {self.top_p} is not in (0, 1]")
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(f"sampling.max_tokens: {self.max_tokens} is not positive")
        if not 0 <= self.seed < 2**31:
            found.append(f"sampling.seed: {self.seed} is not in [0, 2^31)")
        own = {"model", "messages", "stream", "n", "temperature", "top_p", "max_tokens", "seed"} & self.extra.keys()
        if own:
            found.append(f"sampling.extra: {', '.join(sorted(own))} cannot be given here")
        return found


@dataclass(frozen=True)
class PaceConfig:
    """How fast, and how stubbornly. None of it changes a result."""

    window: int = 64
    """Most requests in flight. The run finds out by itself how many of them the server bears."""
    attempts: int = 3
    """Answers that a snippet may cost until one is of use; then it has failed (content)."""
    tries: int = 12
    """Requests in a row that may fail by the server's fault (5xx, timeout, reset, cut or malformed answer) until the
    snippet has failed (transient). Refusals by a rate limit (429) do not count."""
    backoff_seconds: float = 1.0
    """Mean wait after a first such failure; each further one doubles it."""
    max_backoff_seconds: float = 60.0
    """Longest wait."""
    patience_seconds: float = 3600.0
    """A server that gives no answer at all for so long ends the run; the next start goes on."""

    def problems(self) -> list[str]:
        """Values that cannot be."""
        found = []
        for name in ("window", "attempts", "tries"):
            if getattr(self, name) < 1:
                found.append(f"pace.{name}: {getattr(self, name)} is not positive")
        for name in ("backoff_seconds", "max_backoff_seconds", "patience_seconds"):
            if not getattr(self, name) > 0:
                found.append(f"pace.{name}: {getattr(self, name)} is not positive")
        return found


@dataclass(frozen=True)
class PricesConfig:
    """What tokens cost."""

    prompt_per_million: float = 0.0
    """Of 10^6 tokens sent."""
    completion_per_million: float = 0.0
    """Of 10^6 tokens answered."""
    currency: str = "USD"
    """Stands behind amounts."""

    def problems(self) -> list[str]:
        """Values that cannot be."""
        names = ("prompt_per_million", "completion_per_million")
        return [f"prices.{name}: {getattr(self, name)} is negative" for name in names if not getattr(self, name) >= 0]


@dataclass(frozen=True)
class BudgetConfig:
    """Where the job stops, whichever comes first, counted over all of its processes; null: when all is done."""

    cost: float | None = None
    """In the currency of the prices."""
    tokens: int | None = None
    """Sent and answered."""
    accepted: int | None = None
    """Accepted snippets."""
    accepted_tokens: int | None = None
    """Tokens in accepted answers."""

    def problems(self) -> list[str]:
        """Values that cannot be."""
        names = ("cost", "tokens", "accepted", "accepted_tokens")
        values = {name: getattr(self, name) for name in names}
        return [f"budget.{name}: {value} is not positive" for name, value in values.items()
                if value is not None and not value > 0]  # fmt: skip


@dataclass(frozen=True)
class SynthesisConfig:
    """One job of tools/synthesize.py."""

    job: str = ""
    """Folder of the job: its snippets, journal and results."""
    snippets: SnippetsConfig = field(default_factory=SnippetsConfig)
    """What questions are made from."""
    prompts: list[str] = field(default_factory=list)
    """Folders with prompt files of one's own, beside those shipped; a later one takes an earlier one's place."""
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    """What an answer must be like."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The server."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How it answers."""
    pace: PaceConfig = field(default_factory=PaceConfig)
    """How fast it is asked."""
    prices: PricesConfig = field(default_factory=PricesConfig)
    """What that costs."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """When to stop."""

    def problems(self) -> list[str]:
        """Every contradiction that shows without opening a file, as `field: what is wrong; fix`."""
        found = [] if self.job else ["job: empty; give the job's folder"]
        for section in (self.snippets, self.answers, self.endpoint, self.sampling, self.pace, self.prices, self.budget):
            found += section.problems()
        has_prices = self.prices.prompt_per_million or self.prices.completion_per_million
        if self.budget.cost is not None and not has_prices:
            found.append("budget.cost: given without prices; add prices.prompt_per_million and completion_per_million")
        return found

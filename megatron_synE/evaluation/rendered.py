"""Log-likelihood tasks as token ids: the file that `render.py` writes and a training run scores.

A line with the xxh3_128 of what follows, then numpy's zip of arrays (none pickled), one of which is a JSON text.
Requests of an item follow each other; a context that several share stands once. Neither harness nor torch is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from megatron_synE.command_line import output_file
from megatron_synE.evaluation.engine import ScoringRequest

FORMAT = 1
_ARRAYS = {
    "context_tokens": np.int32, "context_ends": np.int64, "continuation_tokens": np.int32,
    "continuation_ends": np.int64, "request_context": np.int64, "request_characters": np.int32,
    "request_bytes": np.int32, "item_ends": np.int64, "gold": np.int32, "gold_ends": np.int64,
}  # fmt: skip

Array = npt.NDArray[Any]


class RenderedItem(NamedTuple):
    """A question with its choices."""

    requests: Sequence[ScoringRequest]
    """One for each choice."""
    num_characters: Sequence[int]
    """Of each choice, as the harness counts: without what stands between question and choice."""
    num_bytes: Sequence[int]
    """The same in UTF-8."""
    gold: Sequence[int]
    """Numbers of the choices that are right."""


@dataclass(frozen=True)
class RenderedTask:
    """What the file says of one task."""

    name: str
    metrics: tuple[str, ...]
    """Of acc, acc_norm and acc_bytes, those that the task asks for."""
    num_fewshot: int
    num_items: int
    fingerprint: str
    """Hash of all its requests, lengths and right answers: equal ones give comparable results."""


class RenderedBenchmarks:
    """Tasks, and the requests of their items.

    Args:
        tasks: in the order of their items.
        arrays: as the file has them.
        identity: what the file was made of: hashes of data, templates and code, the tokenizer, the settings.
        notes: what a person should know of it.
    """

    def __init__(
        self, tasks: Sequence[RenderedTask], arrays: Mapping[str, Array], identity: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.tasks, self.identity, self.notes, self._arrays = tuple(tasks), dict(identity), list(notes), dict(arrays)
        self._items: dict[str, range] = {}
        first = 0
        for task in tasks:
            self._items[task.name] = range(first, first := first + task.num_items)

    @property
    def num_requests(self) -> int:
        """Of all tasks."""
        return len(self._arrays["request_context"])

    def items_of(self, task: str) -> range:
        """Numbers of a task's items among all."""
        return self._items[task]

    def requests_of(self, items: range) -> range:
        """Numbers of the requests of successive items among all."""
        return range(_start(self._arrays["item_ends"], items.start), _start(self._arrays["item_ends"], items.stop))

    def requests(self, numbers: range) -> list[ScoringRequest]:
        """Successive requests; those with one context share its tuple."""
        contexts: dict[int, tuple[int, ...]] = {}
        found = []
        for number in numbers:
            context = int(self._arrays["request_context"][number])
            if context not in contexts:
                contexts[context] = tuple(self._part("context_tokens", "context_ends", context).tolist())
            continuation = self._part("continuation_tokens", "continuation_ends", number)
            found.append(ScoringRequest(contexts[context], tuple(continuation.tolist())))
        return found

    def item(self, number: int) -> RenderedItem:
        """One item by its number among all."""
        requests = self.requests_of(range(number, number + 1))
        chosen = slice(requests.start, requests.stop)
        return RenderedItem(
            requests=self.requests(requests),
            num_characters=self._arrays["request_characters"][chosen].tolist(),
            num_bytes=self._arrays["request_bytes"][chosen].tolist(),
            gold=self._part("gold", "gold_ends", number).tolist(),
        )

    def longest_request_tokens(self) -> int:
        """Context and continuation together."""
        contexts = np.diff(self._arrays["context_ends"], prepend=0)[self._arrays["request_context"]]
        return int((contexts + np.diff(self._arrays["continuation_ends"], prepend=0)).max(initial=0))

    def largest_token(self) -> int:
        """Of all requests."""
        return max(int(self._arrays[name].max(initial=0)) for name in ("context_tokens", "continuation_tokens"))

    def write(self, path: Path) -> None:
        """The file, complete or absent."""
        text = {
            "format": FORMAT, "identity": self.identity, "notes": self.notes,
            "tasks": [asdict(task) for task in self.tasks],
        }  # fmt: skip
        content = np.frombuffer(json.dumps(text, ensure_ascii=False).encode("utf-8"), np.uint8)
        whole = io.BytesIO()
        np.savez(whole, allow_pickle=False, tasks=content, **self._arrays)
        with output_file(path) as file:
            file.write(f"{xxhash.xxh3_128_hexdigest(whole.getbuffer())}\n".encode("ascii"))
            file.write(whole.getbuffer())

    def _part(self, values: str, ends: str, number: int) -> Array:
        return self._arrays[values][_start(self._arrays[ends], number) : int(self._arrays[ends][number])]


class RenderedBuilder:
    """Takes items, task by task."""

    def __init__(self) -> None:
        self._lists: dict[str, list[Any]] = {name: [] for name in _ARRAYS}
        self._tasks: list[RenderedTask] = []
        self._contexts: dict[tuple[int, ...], int] = {}

    def add(self, name: str, items: Sequence[RenderedItem], *, metrics: Sequence[str], num_fewshot: int) -> None:
        """A task with all of its items."""
        self._contexts = {}
        for item in items:
            self._add_item(item)
        told = [[list(map(list, item.requests)), *map(list, item[1:])] for item in items]
        fingerprint = hashlib.sha256(json.dumps(told).encode("ascii")).hexdigest()[:32]
        self._tasks.append(RenderedTask(name, tuple(metrics), num_fewshot, len(items), fingerprint))

    def _add_item(self, item: RenderedItem) -> None:
        lists = self._lists
        for request, characters, size in zip(item.requests, item.num_characters, item.num_bytes, strict=True):
            if request.context not in self._contexts:
                self._contexts[request.context] = len(lists["context_ends"])
                _append(lists["context_tokens"], lists["context_ends"], request.context)
            lists["request_context"].append(self._contexts[request.context])
            _append(lists["continuation_tokens"], lists["continuation_ends"], request.continuation)
            lists["request_characters"].append(characters)
            lists["request_bytes"].append(size)
        lists["item_ends"].append(len(lists["request_context"]))
        _append(lists["gold"], lists["gold_ends"], item.gold)

    def finish(self, identity: Mapping[str, Any], notes: Sequence[str] = ()) -> RenderedBenchmarks:
        """All that was added."""
        arrays = {
            name: np.concatenate([np.empty(0, kind), *(np.asarray(p, kind).reshape(-1) for p in self._lists[name])])
            for name, kind in _ARRAYS.items()
        }
        return RenderedBenchmarks(self._tasks, arrays, identity, notes)


def read_rendered(path: Path) -> RenderedBenchmarks:
    """The file as it was written.

    Raises:
        OSError: it is not there.
        ValueError: it is damaged, or of another format; names it.
    """
    checksum, _, whole = path.read_bytes().partition(b"\n")
    if checksum != xxhash.xxh3_128_hexdigest(whole).encode("ascii"):
        raise ValueError(f"{path}: damaged, does not fit its own checksum; remove it")
    with np.load(io.BytesIO(whole), allow_pickle=False) as stored:
        content = json.loads(stored["tasks"].tobytes())
        if content["format"] != FORMAT:
            raise ValueError(f"{path}: of another version; remove it")
        arrays = {name: stored[name] for name in _ARRAYS}
    tasks = [RenderedTask(**{**entry, "metrics": tuple(entry["metrics"])}) for entry in content["tasks"]]
    return RenderedBenchmarks(tasks, arrays, content["identity"], content["notes"])


def _start(ends: Array, number: int) -> int:
    return int(ends[number - 1]) if number else 0


def _append(values: list[Any], ends: list[int], tokens: Sequence[int]) -> None:
    values.append(np.asarray(tokens, np.int32))
    ends.append((ends[-1] if ends else 0) + len(tokens))

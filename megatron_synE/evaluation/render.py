"""The log-likelihood tasks of a job as token ids, made in a process of its own.

    python -m megatron_synE.evaluation.render

`training.rendering` starts it, writes one JSON object to its stdin and reads one from its stdout: `problems` and
`notes`. What a library prints goes to stderr. It dies with its parent, and heeds no signal that stops a run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_synE.command_line import described
from megatron_synE.corpus.tokenizers import build_tokenizer
from megatron_synE.evaluation.encoding import RequestEncoder, bos_policy
from megatron_synE.evaluation.manifest import code_hash
from megatron_synE.evaluation.rendered import RenderedBenchmarks, RenderedBuilder, RenderedItem, read_rendered
from megatron_synE.evaluation.tasks.task_files import LoadedTasks, load_tasks, read_task_file, resolve_tasks
from megatron_synE.progress import ProgressBar
from megatron_synE.training.benchmarks import METRICS

if TYPE_CHECKING:
    from megatron_synE.evaluation.tasks.local_task import LocalTask

FIELD = "evaluation.benchmarks"
_PR_SET_PDEATHSIG = 1


class Problems(ValueError):
    """All that is wrong, one line each."""


def render(asked: Mapping[str, Any]) -> list[str]:
    """Make the file that is asked for, unless it is there.

    Args:
        asked: as `training.rendering.render` writes it.

    Returns:
        What a person should know of the requests.

    Raises:
        Problems: the tasks, their data or the tokenizer will not do.
    """
    loaded = _load(asked["tasks"], Path(asked["data_dir"]), asked["num_fewshot"])
    encoder = _encoder(asked["tokenizer"], asked["add_bos"])
    output = Path(asked["output"]) if asked["output"] is not None else None
    identity = _identity(asked, loaded, encoder)
    rendered = _made_before(output, identity)
    if rendered is None:
        rendered = _rendered(asked, loaded, encoder, identity)
        if output is not None:
            rendered.write(output)
    return rendered.notes


def _load(names: Sequence[str], data_dir: Path, num_fewshot: int | None) -> dict[str, LoadedTasks]:
    """The tasks of each name; every problem of every one."""
    problems = []
    for name in names:
        try:
            problems += _problems_of(name, num_fewshot)
        except ValueError as error:
            problems.append(f"{FIELD}.tasks: {error}")
    loaded = {}
    for name in names if not problems else ():
        try:
            loaded[name] = load_tasks([name], data_dir, num_fewshot=num_fewshot)
        except ValueError as error:
            problems.append(f"{FIELD}: {error}")
    if problems:
        raise Problems("\n".join(problems))
    return loaded


def _problems_of(name: str, num_fewshot: int | None) -> list[str]:
    """Why a task cannot be measured while training."""
    configs = [read_task_file(benchmark).config for benchmark in resolve_tasks([name])]  # all is several
    if any(config["output_type"] != "multiple_choice" for config in configs):
        return [
            f"{FIELD}.tasks: {name} has text generated, which a training run does not; drop it, and use "
            "tools/evaluate.py on a checkpoint"
        ]
    if num_fewshot and not all(config["num_fewshot"] for config in configs):
        return [f"{FIELD}.num_fewshot: {name} has no examples to show; leave it out, or that task"]
    return []


def _encoder(wanted: Mapping[str, Any], add_bos: str) -> RequestEncoder:
    try:
        tokenizer = build_tokenizer(wanted["type"], wanted["name"])
    except ValueError as error:
        raise Problems(f"{FIELD}.tokenizer: {str(error).removeprefix('--tokenizer-model ')}") from error
    if wanted["fingerprints"] and tokenizer.fingerprint not in wanted["fingerprints"]:
        raise Problems(f"{FIELD}.tokenizer: {tokenizer.name} is not the one that made the corpora; name that one")
    try:
        return RequestEncoder(tokenizer, bos_policy(tokenizer, add_bos))
    except ValueError as error:
        raise Problems(f"{FIELD}.add_bos: {str(error).removeprefix('--add-bos ')}") from error


def _identity(asked: Mapping[str, Any], loaded: Mapping[str, LoadedTasks], encoder: RequestEncoder) -> dict[str, Any]:
    """All that has a part in what is rendered."""
    made_of = {
        "tasks": {name: list(tasks.task_dict["tasks"]) for name, tasks in loaded.items()},
        "data_files": {name: tasks.data_files for name, tasks in loaded.items()},
        "templates": {name: tasks.templates for name, tasks in loaded.items()},
        "encoding": encoder.describe(),
        **{name: asked[name] for name in ("limit", "num_fewshot", "vocab_size", "max_length_tokens")},
        "lm_eval": version("lm_eval"),
        "code": code_hash(),
    }
    return dict(json.loads(json.dumps(made_of)))  # as it comes back from the file


def _made_before(output: Path | None, identity: Mapping[str, Any]) -> RenderedBenchmarks | None:
    """The file that is there, where it holds what would be made again."""
    if output is None or not output.exists():
        return None
    try:
        found = read_rendered(output)
    except ValueError:
        return None  # made again
    return found if found.identity == identity else None


def _rendered(
    asked: Mapping[str, Any], loaded: Mapping[str, LoadedTasks], encoder: RequestEncoder, identity: dict[str, Any]
) -> RenderedBenchmarks:
    builder = RenderedBuilder()
    notes = [encoder.bos.describe(), *(notice for tasks in loaded.values() for notice in tasks.notices)]
    with ProgressBar("rendering benchmarks", len(loaded), "benchmarks") as bar:
        for name, tasks in loaded.items():
            own = tasks.task_dict["tasks"].values()
            try:
                items = [item for task in own for item in _items(task, asked["limit"], encoder)]
            except ValueError as error:
                raise Problems(f"{FIELD}: {name}: {error}") from error
            notes += [_size(name, items), *_checked(name, items, asked)]
            metrics = next(list(task.aggregation()) for task in own)
            assert set(metrics) <= set(METRICS), (name, metrics)
            builder.add(
                name, items, metrics=metrics, num_fewshot=max(task.config.num_fewshot for task in own)
            )
            bar.advance(1)
    return builder.finish(identity, [*notes, *encoder.notes()])


def _items(task: LocalTask, limit: int | None, encoder: RequestEncoder) -> list[RenderedItem]:
    """The requests of a task as the harness makes them, and what its `process_results` asks of an item besides."""
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    by_item: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_item.setdefault(instance.doc_id, []).append(instance)
    requests = iter(encoder.encode_pairs([(one.args[0], one.args[1]) for own in by_item.values() for one in own]))
    found = []
    for own in by_item.values():
        choices, gold = task.doc_to_choice(own[0].doc), task.doc_to_target(own[0].doc)
        assert len(choices) == len(own), (task.config.task, choices)
        found.append(
            RenderedItem(
                requests=[next(requests) for _ in own],
                num_characters=[len(choice) for choice in choices],
                num_bytes=[len(choice.encode("utf-8")) for choice in choices],
                gold=[_place(one, choices) for one in (gold if isinstance(gold, list) else [gold])],
            )
        )
    return found


def _place(gold: int | str, choices: Sequence[str]) -> int:
    """The number of the right choice; one that no choice has where none is right."""
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else -1
    return gold


def _size(name: str, items: Sequence[RenderedItem]) -> str:
    lengths = [len(request.context) + len(request.continuation) for item in items for request in item.requests]
    mean = sum(lengths) / len(lengths)
    return f"{name}: {len(items):,} items, {len(lengths):,} requests of {mean:,.0f} tokens on average"


def _checked(name: str, items: Sequence[RenderedItem], asked: Mapping[str, Any]) -> list[str]:
    """Notes of requests that the model will not read whole.

    Raises:
        Problems: it has not all of their tokens.
    """
    vocab_size, room = asked["vocab_size"], asked["max_length_tokens"]
    requests = [request for item in items for request in item.requests]
    largest = max(max(max(request.context), max(request.continuation)) for request in requests)
    if largest >= vocab_size:
        raise Problems(
            f"{FIELD}.tokenizer: {name} has a token {largest}, and the model's vocabulary is {vocab_size}; name "
            "the tokenizer that made the corpora"
        )
    num_long = sum(len(request.context) + len(request.continuation) > room for request in requests)
    if not num_long:
        return []
    return [
        f"{name}: {num_long} of {len(requests)} requests are longer than the model's context of {room} tokens, "
        "and lose their beginning"
    ]


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Answer what stands on stdin."""
    asked = json.load(sys.stdin)
    _die_with(asked["parent"])
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1")
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    problems, notes = [], []
    try:
        notes = render(asked)
    except Problems as found:
        problems = str(found).splitlines()
    except OSError as error:
        problems = [f"{FIELD}: {described(error)}"]
    with answer:
        json.dump({"problems": problems, "notes": notes}, answer, ensure_ascii=False)


if __name__ == "__main__":
    main()

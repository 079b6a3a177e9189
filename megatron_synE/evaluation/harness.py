"""lm-evaluation-harness over local tasks and a model of ours; what it finds, as a folder of results.

The folder's files and their format: `megatron_synE.config.evaluation_results`. The results file is written last: a
folder that has one is finished.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

from megatron_synE.command_line import output_file
from megatron_synE.config.evaluation_results import MANIFEST_FILE
from megatron_synE.evaluation.encoding import RequestEncoder
from megatron_synE.evaluation.harness_model import HarnessModel
from megatron_synE.evaluation.tasks.task_files import LoadedTasks

BOOTSTRAP_ITERATIONS = 1000
"""For the standard errors of metrics that are no means."""
NUM_SHOWN_PROMPTS = 3


def run_harness(model: HarnessModel, tasks: LoadedTasks, *, limit: int | None, seed: int) -> dict[str, Any]:
    """The harness's results, its samples among them.

    Args:
        limit: items of each task; None for all.
        seed: of Python's and numpy's random numbers, which tasks may use.
    """
    random.seed(seed)
    np.random.seed(seed)
    run_code = any(getattr(task, "UNSAFE_CODE", False) for task in tasks.task_dict["tasks"].values())
    found = evaluate(
        lm=model, task_dict=tasks.task_dict, limit=limit, bootstrap_iters=BOOTSTRAP_ITERATIONS, log_samples=True,
        confirm_run_unsafe_code=run_code,
    )  # fmt: skip
    return dict(found)


def first_prompts(encoder: RequestEncoder, tasks: LoadedTasks) -> dict[str, list[dict[str, str]]]:
    """Of each benchmark the first prompts, as they are rendered and as token ids: those of a group's first task."""
    groups = tasks.task_dict["groups"]
    inside = {name: group for group, names in tasks.task_dict["group_map"].items() for name in names}
    found: dict[str, list[dict[str, str]]] = {}
    for name, task in tasks.task_dict["tasks"].items():
        benchmark = inside.get(name, name)
        if benchmark not in found:
            assert benchmark == name or benchmark in groups
            task.build_all_requests(limit=NUM_SHOWN_PROMPTS)
            first = {request.doc_id: request for request in reversed(task.instances)}
            found[benchmark] = [_shown_prompt(encoder, first[number]) for number in sorted(first)]
    return found


def _shown_prompt(encoder: RequestEncoder, request: Any) -> dict[str, str]:
    """Context, and continuation where one is scored, of an item's first request."""
    if request.request_type != "loglikelihood":
        (ids,) = encoder.encode_prompts([request.args[0]])
        return {"prompt": request.args[0], "token_ids": _joined(ids)}
    (pair,) = encoder.encode_pairs([request.args])
    return {
        "prompt": request.args[0], "token_ids": _joined(pair.context), "continuation": request.args[1],
        "continuation_token_ids": _joined(pair.continuation),
    }  # fmt: skip


def _joined(ids: Sequence[int]) -> str:
    """In one line of a JSON file."""
    return " ".join(map(str, ids))


def write_results(
    folder: Path, found: Mapping[str, Any], manifest: Mapping[str, Any], *, began: datetime, model_name: str
) -> Path:
    """Samples, manifest and results, each aside first; the results file, which is returned, last.

    Args:
        found: what `run_harness` gave.
        manifest: of `make_manifest`.
        began: when the evaluation was first started; names the files.
        model_name: for tables.

    Raises:
        OSError: a file cannot be written.
    """
    stamp = began.isoformat(timespec="microseconds").replace("+00:00", "").replace(":", "-")
    samples = found["samples"]
    for task, lines in samples.items():
        with output_file(folder / f"samples_{task}_{stamp}.jsonl") as file:
            for sample in lines:
                file.write(_line(sample).encode("utf-8", errors="surrogatepass"))
    with output_file(folder / MANIFEST_FILE) as file:
        file.write(_document(manifest).encode())
    results = {name: value for name, value in found.items() if name != "samples"}
    results |= {
        "config": {"model": model_name, **manifest["settings"], "bootstrap_iters": BOOTSTRAP_ITERATIONS},
        "git_hash": manifest["code"]["commit"],
        "date": began.timestamp(),
        "lm_eval_version": manifest["code"]["versions"]["lm_eval"],
        "transformers_version": manifest["code"]["versions"].get("transformers"),
        "model_source": "megatron_synE",
        "model_name": model_name,
        "task_hashes": {task: _hash_of(lines) for task, lines in samples.items()},
    }
    path = folder / f"results_{stamp}.json"
    with output_file(path) as file:
        file.write(_document(results).encode())
    return path


def _hash_of(samples: list[dict[str, Any]]) -> str:
    """As lm-eval's EvaluationTracker makes it."""
    return str(hash_string("".join(own["doc_hash"] + own["prompt_hash"] + own["target_hash"] for own in samples)))


def _line(sample: Mapping[str, Any]) -> str:
    """A sample in the form of lm-eval's EvaluationTracker: arguments by number, answers as text."""
    arguments = {
        f"gen_args_{number}": {f"arg_{place}": argument for place, argument in enumerate(own)}
        for number, own in enumerate(sample["arguments"])
    }
    changed = {
        "arguments": arguments, "target": str(sample["target"]), "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
    }  # fmt: skip
    return json.dumps({**sample, **changed}, default=handle_non_serializable, ensure_ascii=False) + "\n"


def _document(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n"

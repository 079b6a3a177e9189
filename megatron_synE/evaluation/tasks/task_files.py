"""Tasks by name: from the YAML files beside this module and the user's data files to what lm-evaluation-harness runs.

A YAML file is a task of the harness (`lm_eval.config.task.TaskConfig`) with three keys of our own: `reader` makes items
of the published files, `folder` is the task's name among them, `subjects` makes it a group with one task a subject.
None of the harness's own tasks is known here, and nothing is loaded by `datasets`: neither works without a network.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megatron_synE.evaluation.tasks.code_answers import check_sandbox
from megatron_synE.evaluation.tasks.data_files import Item, Items

if TYPE_CHECKING:
    from megatron_synE.evaluation.tasks.local_task import LocalTask, SubjectGroup

SHIPPED = Path(__file__).parent
OWN_KEYS = ("reader", "folder", "subjects")
PACKAGE = "megatron_synE.evaluation."
"""Only functions below it can be named by a YAML file."""


@dataclass(frozen=True)
class LoadedTasks:
    """What `lm_eval.evaluator.evaluate` runs, and what determines it."""

    task_dict: dict[str, Any]
    """lm-eval's `TaskDict`: `tasks`, `groups` and `group_map`."""
    templates: dict[str, str]
    """YAML file → SHA-256 of its bytes."""
    data_files: dict[str, str]
    """Path below the data folder → SHA-256 of the bytes that were read; see `Items.files`."""
    examples: dict[str, list[str]]
    """Task → SHA-256 of each of its few-shot examples (`item_hash`), in their order."""
    notices: list[str] = field(default_factory=list)
    """What a user should know before the evaluation begins: items left out, a metric that is not computed."""


@dataclass(frozen=True)
class TaskFile:
    """A YAML file beside this module, with what it includes."""

    name: str
    config: dict[str, Any]
    """For `TaskConfig`, without `task`."""
    reader: Callable[..., dict[str, Items]]
    folder: str
    subjects: dict[str, str]
    """Subject → its title in prompts; empty for a task without subjects."""
    hashes: dict[str, str]
    """YAML file → SHA-256 of its bytes."""

    @property
    def task_names(self) -> dict[str, str]:
        """Task → subject."""
        return {f"{self.name}_{subject}": subject for subject in self.subjects} or {self.name: ""}


def benchmark_names() -> list[str]:
    """Names of all benchmarks: tasks, and groups of subjects."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml") if not path.stem.startswith("_"))


def resolve_tasks(names: Sequence[str]) -> dict[str, list[str]]:
    """Benchmark → its tasks that are asked for, in the order of `names`.

    Args:
        names: benchmarks (`mmlu` is all its subjects), single subjects (`mmlu_anatomy`), or `all`.

    Raises:
        ValueError: a name is no task's (told with the nearest that is), or there is none.
    """
    if not names:
        raise ValueError(f"no task is named; there are {', '.join(benchmark_names())}")
    files = {name: read_task_file(name) for name in benchmark_names()}
    owners = {task: name for name, file in files.items() for task in file.task_names}
    chosen: dict[str, list[str]] = {}
    for name in [part for given in names for part in (files if given == "all" else [given])]:
        if name not in files and name not in owners:
            raise ValueError(f"{name}: there is no such task; {_nearest(name, [*files, *owners])}")
        for task in files[name].task_names if name in files else [name]:
            listed = chosen.setdefault(owners[task], [])
            listed += [] if task in listed else [task]
    return chosen


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(benchmark_names())}"


def load_tasks(
    names: Sequence[str], data_dir: Path, *, run_code: bool = False, num_fewshot: int | None = None
) -> LoadedTasks:
    """Read the data of tasks, and make them ready to run.

    Args:
        names: as in `resolve_tasks`.
        data_dir: holds the data files, as the table in README.md says.
        run_code: programs that a model writes may be run. Otherwise tasks of code have no metric, and a notice says so.
        num_fewshot: examples in each prompt; by default as the paper has them.

    Raises:
        ValueError: a name is unknown; a data file is missing, broken or there in two forms; code cannot be run here.
    """
    from megatron_synE.evaluation.tasks.local_task import SubjectGroup

    if not data_dir.is_dir():
        raise ValueError(f"--data-dir {data_dir}: is no folder; name the one that holds the benchmarks' files")
    tasks: dict[str, LocalTask] = {}
    groups: dict[str, SubjectGroup] = {}
    loaded = LoadedTasks({"tasks": tasks, "groups": groups, "group_map": {}}, {}, {}, {})
    for benchmark, wanted in resolve_tasks(names).items():
        file = read_task_file(benchmark)
        loaded.templates.update(file.hashes)
        config = dict(file.config) | ({} if num_fewshot is None else {"num_fewshot": num_fewshot})
        if config.get("unsafe_code") and run_code:
            check_sandbox()
        elif config.get("unsafe_code"):
            config |= {"unsafe_code": False, "metric_list": [], "process_results": _no_metrics}
            loaded.notices.append(
                f"{benchmark}: pass@1 needs --run-code; answers are logged, and no metric is computed"
            )
        for task in wanted:
            tasks[task] = _load_task(file, config, task, data_dir, loaded)
        if file.subjects:
            groups[benchmark] = SubjectGroup.of(benchmark, [tasks[task] for task in wanted], file.config["metric_list"])
            loaded.task_dict["group_map"][benchmark] = wanted
    return loaded


def _load_task(file: TaskFile, config: Mapping[str, Any], task: str, data_dir: Path, loaded: LoadedTasks) -> LocalTask:
    from megatron_synE.evaluation.tasks.local_task import LocalTask

    subject = file.task_names[task]
    arguments = [file.folder.format(subject=subject)] if file.folder else []
    try:
        splits = file.reader(data_dir, *arguments)
    except ValueError as error:
        raise ValueError(f"{task}: {error}") from error
    if subject:
        splits = {
            name: Items((item | {"subject": file.subjects[subject]} for item in items), items.files)
            for name, items in splits.items()
        }
    for items in splits.values():
        loaded.data_files.update(items.files)
    made = LocalTask({**config, "task": task}, splits)
    if made.num_examples_among_items:
        loaded.notices.append(
            f"{task}: {made.num_examples_among_items} items are few-shot examples as well; not scored"
        )
    again = len(made.eval_docs) - len({item_hash(item) for item in made.eval_docs})
    if again:  # some are published so
        loaded.notices.append(f"{task}: {again} of {len(made.eval_docs)} items repeat another; all are scored")
    loaded.examples[task] = [item_hash(example) for example in made.examples]
    return made


def item_hash(item: Item) -> str:
    """SHA-256 of an item as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(item, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _no_metrics(item: Item, results: Sequence[str]) -> dict[str, float]:
    return {}


def read_task_file(name: str) -> TaskFile:
    """A YAML file beside this module, what it includes underneath."""
    hashes: dict[str, str] = {}
    content = _read_yaml(SHIPPED / f"{name}.yaml", hashes)
    subjects = content.get("subjects", {})
    titles = subjects if isinstance(subjects, dict) else {subject: subject.replace("_", " ") for subject in subjects}
    config = {key: value for key, value in content.items() if key not in OWN_KEYS}
    return TaskFile(
        name, config, content["reader"], content.get("folder", "{subject}" if titles else ""), titles, hashes
    )


def _read_yaml(path: Path, hashes: dict[str, str]) -> dict[str, Any]:
    raw = path.read_bytes()
    hashes[f"{SHIPPED.name}/{path.name}"] = hashlib.sha256(raw).hexdigest()
    content: dict[str, Any] = yaml.load(raw, Loader=_TaskLoader)
    included = content.pop("include", None)
    return content if included is None else _read_yaml(path.parent / included, hashes) | content


class _TaskLoader(yaml.SafeLoader):
    """SafeLoader with the harness's tag `!function module.name`, for functions of this package."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    module, _, name = loader.construct_scalar(node).rpartition(".")
    assert module.startswith(PACKAGE), f"{module}.{name} is not below {PACKAGE}"
    return getattr(importlib.import_module(module), name)


_TaskLoader.add_constructor("!function", _function)

"""A task of lm-evaluation-harness over items that were read already, and a group of such tasks.

The order of a task's few-shot examples is that of its file: no seed, no limit and no other task has a part in it.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig
from lm_eval.utils import env

from megatron_synE.evaluation.tasks.data_files import Item, Items


class LocalTask(ConfigurableTask):
    """A task over the items of `splits`.

    Where items have a `group`, the examples of an item are those of its own group.

    Args:
        config: for `lm_eval.config.task.TaskConfig`.
        splits: name → items; those in the configuration's `test_split` are asked, but for those that are examples.

    Raises:
        ValueError: there are fewer examples than shots, or nothing to ask beside them.
    """

    def __init__(self, config: Mapping[str, Any], splits: Mapping[str, Items]) -> None:
        name, shots = config["task"], config["num_fewshot"]
        samples = config.get("fewshot_config", {}).get("samples")
        pool = samples or splits.get(config.get("fewshot_split", ""), Items([], {}))
        self._by_group = _grouped(pool, shots)
        self.examples: list[Item] = [example for examples in self._by_group.values() for example in examples]
        """All examples that a prompt of this task can show, in their order."""
        test = splits[config["test_split"]]
        kept = Items((item for item in test if item not in self.examples), test.files)
        self.num_examples_among_items = len(test) - len(kept)
        """Items of the test split that are not asked, because a prompt may show them as examples."""
        if not kept:
            raise ValueError(f"{name}: every item of {', '.join(test.files)} is a few-shot example; fetch it again")
        for group in dict.fromkeys(item.get("group") for item in kept) if shots else ():
            found = len(self._by_group.get(group, []))
            if found < shots:
                place = f"{'its YAML file' if samples else ', '.join(getattr(pool, 'files', ())) or 'its data'}"
                told = f"{place} has {found}{f' of {group}' if group else ''}"
                raise ValueError(f"{name}: a prompt of {shots} examples is asked for, and {told}")
        self._splits = {**splits, config["test_split"]: kept}
        super().__init__(config=copy.deepcopy(dict(config)))

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is downloaded."""
        self.dataset = self._splits

    def fewshot_context(self, doc: Item, *args: Any, **kwargs: Any) -> Any:
        """The prompt of an item, after the examples of its group."""
        if self._by_group:
            self.sampler.replace_df(self._by_group[doc.get("group")])
        return super().fewshot_context(doc, *args, **kwargs)

    def doc_to_text(self, doc: Item, doc_to_text: str | None = None) -> Any:
        """An item's question."""
        return self.resolve_field(doc, doc_to_text or self.config.doc_to_text)

    def doc_to_target(self, doc: Item, doc_to_target: str | None = None) -> Any:
        """An item's answer: its text, or the number of the right choice."""
        return self.resolve_field(doc, doc_to_target or self.config.doc_to_target)

    @staticmethod
    def resolve_field(doc: Item, field: str | None = None) -> Any:
        """A field of an item, or a template filled with its fields.

        lm-eval compiles a template anew for each item and example, which is most of the time that prompts take; and
        reads what looks like a list, as a solution that begins with `[asy]`, as Python.
        """
        if not field:
            return None
        return doc[field] if field in doc else _template(field).render(**doc)


@functools.cache
def _template(text: str) -> jinja2.Template:
    return env.from_string(text)


def _grouped(candidates: Sequence[Item], shots: int) -> dict[str | None, list[Item]]:
    """The first `shots` items of each group."""
    groups: dict[str | None, list[Item]] = {}
    for item in candidates if shots else []:
        listed = groups.setdefault(item.get("group"), [])
        if len(listed) < shots:
            listed.append(item)
    return groups


class SubjectGroup(Group):
    """A benchmark of several subjects: each metric over all items, and as the mean of the subjects (`acc_macro`)."""

    @classmethod
    def of(cls, name: str, tasks: Sequence[LocalTask], metrics: Sequence[Mapping[str, Any]]) -> SubjectGroup:
        """A group of tasks.

        Args:
            metrics: the tasks' `metric_list`.
        """
        averages = [AggMetricConfig(metric=metric["metric"], weight_by_size=True) for metric in metrics]
        group = cls(name=name, aggregate_metric_list=averages, metadata={"version": tasks[0].VERSION})
        for task in tasks:
            group.add(task)
        return group

    def aggregate(self, task_metrics: Mapping[str, Any]) -> Any:
        """lm-eval's means over all items, and those over subjects with their standard errors."""
        metrics = super().aggregate(task_metrics)
        for average in self.aggregate_metric_list or []:
            key, error_key = f"{average.metric},none", f"{average.metric}_stderr,none"
            subjects = [task_metrics[task] for task in self.child_names if key in task_metrics[task]]
            if not subjects:
                continue
            errors = [subject[error_key] for subject in subjects]
            known = all(isinstance(error, float) for error in errors)
            metrics[f"{average.metric}_macro,none"] = sum(subject[key] for subject in subjects) / len(subjects)
            metrics[f"{average.metric}_macro_stderr,none"] = math.hypot(*errors) / len(errors) if known else "N/A"
        return metrics

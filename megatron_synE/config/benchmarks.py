"""Benchmarks that are measured while training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class BenchmarksConfig:
    """Benchmarks by log-likelihood on local files, scored by the model where it lies. Needs the extra `eval`."""

    tasks: list[str] = field(default_factory=list)
    """Their names, those of tools/evaluate.py that generate nothing, for instance sciq, arc_easy, mmlu, ceval."""
    data_dir: str | None = None
    """Folder of the data sets in the form that they are published in."""
    interval_steps: int | None = None
    """Steps between two measurements; none measures at the start and at the end only."""
    at_start: bool = True
    """Measure before the first step: what the later measurements are compared with."""
    at_end: bool = True
    """Measure after the last step."""
    limit: int | None = None
    """Items of each task, or of each subject of one with subjects; none takes all."""
    num_fewshot: int | None = None
    """Solved examples before each question; none takes the paper's number for each task."""
    tokenizer: str | None = None
    """Folder or file; none takes the one that made the corpora."""
    add_bos: Literal["auto", "yes", "no"] = "auto"
    """One begin-of-text token before each request; auto: but where the tokenizer's files decline it."""
    tokens_per_batch: int = 8192
    """Most tokens in a forward pass, padding included; without influence on the results."""

    def problems(self) -> list[str]:
        """Values outside their range, and tasks without data."""
        found, where = [], "evaluation.benchmarks"
        for name in ("interval_steps", "limit", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                default = "" if name == "tokens_per_batch" else ", or null"
                found.append(f"{where}.{name}: {value} is not positive; use 1 or more{default}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            found.append(f"{where}.num_fewshot: {self.num_fewshot} is negative; use 0 or more, or null")
        twice = sorted({task for task in self.tasks if self.tasks.count(task) > 1})
        found += [f"{where}.tasks: {task} stands there twice; leave one out" for task in twice]
        if self.tasks and self.data_dir is None:
            found.append(f"{where}.data_dir: no folder is given; name the one that holds the tasks' data")
        if self.data_dir is not None and not self.tasks:
            found.append(f"{where}.tasks: none are named; name some, for instance [sciq, arc_easy], or drop data_dir")
        return found

    def is_due(self, step: int, last_step: int) -> bool:
        """Whether there is a measurement after `step` steps of `last_step`."""
        if not self.tasks:
            return False
        if step == 0:
            return self.at_start
        if step == last_step:
            return self.at_end
        return self.interval_steps is not None and step % self.interval_steps == 0

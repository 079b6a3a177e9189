"""The forgetting guard: how much worse a run may become at what it could before, and what is done past that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_synE.config.data import DataConfig, Share, exact

WHERE = "evaluation.guard"


@dataclass(frozen=True)
class LossBounds:
    """Largest rise of a held-out loss above its value at step 0, in nats per token; the most specific one counts.

    A source's loss is the mean over the held-out tokens of all its topics. A component (`source/topic`) is judged where
    `sources` names it.
    """

    default: float | None = None
    """For every source; none guards only those of `languages` and `sources`."""
    languages: dict[str, float | None] = field(default_factory=dict)
    """Language → bound for each of its sources; null guards none of them."""
    sources: dict[str, float | None] = field(default_factory=dict)
    """Source, or component `source/topic` → bound; null does not guard it."""

    def by_name(self, data: DataConfig) -> dict[str, float]:
        """Source or component → its bound, of those that have one."""
        found = {}
        for name, source in data.sources.items():
            own = self.languages.get(source.language, self.default)
            found[name] = self.sources.get(name, own)
        found |= {name: bound for name, bound in self.sources.items() if name not in data.sources}
        return {name: bound for name, bound in found.items() if bound is not None}

    def problems(self, data: DataConfig) -> list[str]:
        """Bounds that are not positive, and names that the data has not."""
        where = f"{WHERE}.max_loss_increase"
        named = {"default": self.default}
        named |= {f"languages.{name}": bound for name, bound in self.languages.items()}
        named |= {f"sources.{name}": bound for name, bound in self.sources.items()}
        found = [
            f"{where}.{name}: {bound} is not positive; use for instance 0.05 (nats per token)"
            for name, bound in named.items()
            if bound is not None and not bound > 0
        ]
        languages = sorted({source.language for source in data.sources.values() if source.language})
        for name in self.languages:
            if name not in languages:
                known = ", ".join(languages) or "not given"
                found.append(f"{where}.languages: no source has language {name!r}; languages are {known}")
        for name in self.sources:
            source, _, topic = name.partition("/")
            if source not in data.sources:
                found.append(f"{where}.sources: unknown source {name!r}; sources are {', '.join(data.sources)}")
            elif topic and not data.sources[source].topics:
                found.append(f"{where}.sources: {name!r} is a topic, but {source} is read without `topics: true`")
        return found


@dataclass(frozen=True)
class RestoreConfig:
    """How share goes back to a source that is forgotten.

    Its weight w becomes w·factor + step, at most `cap`. All sources that are not past a bound themselves give it, in
    proportion to their weights, whatever their language: the mixture leans back to the language that was forgotten.
    The new weights hold as long as the stages' own weights stay what they were moved from; a stage with others begins
    with its own.
    """

    step: Share = 0.05
    """Share of the whole mixture that is added; 0 adds none."""
    factor: Share = 1
    """What the weight is multiplied by before that; 1 leaves it."""
    cap: Share = 0.9
    """Largest weight that a source is raised to."""
    floor: Share = 0.5
    """Part of the weight its stage gives it that every other source keeps."""
    cooldown_steps: int | None = None
    """Steps after a restoration in which the same source gets none: it has to take effect first. None: two times
    `evaluation.interval_steps`, or that of the benchmarks."""
    max_restorations: int = 5
    """Most restorations of one source in a run; after them the guard warns."""

    def problems(self) -> list[str]:
        """Values outside their range."""
        where, found, shares = f"{WHERE}.restore", [], {}
        for name in ("step", "factor", "cap", "floor"):
            try:
                shares[name] = exact(getattr(self, name))
            except ValueError as error:
                found.append(f"{where}.{name}: {error}")
        if found:
            return found
        if not 0 <= shares["step"] < 1:
            found.append(f"{where}.step: {self.step} is not in [0, 1); use for instance 0.05")
        if shares["factor"] < 1:
            found.append(f"{where}.factor: {self.factor} is less than 1 and would take share away; use 1 or more")
        if shares["step"] == 0 and shares["factor"] == 1:
            found.append(f"{where}.step, factor: 0 and 1 move nothing; raise one of them")
        if not 0 < shares["cap"] < 1:
            found.append(f"{where}.cap: {self.cap} is not between 0 and 1; use for instance 0.9")
        if not 0 <= shares["floor"] < 1:
            found.append(f"{where}.floor: {self.floor} is not in [0, 1); use for instance 0.5")
        if self.cooldown_steps is not None and self.cooldown_steps < 1:
            found.append(f"{where}.cooldown_steps: {self.cooldown_steps} is not positive; use 1 or more, or null")
        if self.max_restorations < 1:
            found.append(f"{where}.max_restorations: {self.max_restorations} is not positive; use 1 or more")
        return found


@dataclass(frozen=True)
class GuardConfig:
    """Compares each evaluation with the run's first one, at step 0. Off without a bound.

    What is past its bound is told, and recorded in metrics.jsonl with kind `forgetting`.
    """

    max_loss_increase: LossBounds = field(default_factory=LossBounds)
    """By held-out loss."""
    max_benchmark_drop: dict[str, float] = field(default_factory=dict)
    """Task of `evaluation.benchmarks.tasks` → largest fall of its accuracy (`acc`), in points of a hundred."""
    benchmark_sources: dict[str, list[str]] = field(default_factory=dict)
    """Task → the sources that stand for it, to which restore_share moves share back."""
    reaction: Literal["warn", "stop", "restore_share"] = "warn"
    """Past a bound: tell it; save and end the run with status 1, and refuse to go on until the bound or this is
    changed; or move share back to the source, as `restore` says."""
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    """How restore_share moves share."""

    @property
    def is_on(self) -> bool:
        """Whether anything is guarded."""
        losses = self.max_loss_increase
        bounds = [losses.default, *losses.languages.values(), *losses.sources.values()]
        return bool(self.max_benchmark_drop) or any(bound is not None for bound in bounds)

    def problems(self, data: DataConfig, tasks: Sequence[str]) -> list[str]:
        """Contradictions among these fields, and with the data and the benchmarks that are measured."""
        if not self.is_on:
            if self == GuardConfig() or self.max_loss_increase != LossBounds():
                return []
            return [f"{WHERE}: no bound is given; give max_loss_increase or max_benchmark_drop, or drop the section"]
        found = self.max_loss_increase.problems(data) + self._benchmark_problems(data, tasks)
        found += [
            f"{WHERE}.max_loss_increase: source {name} has no held-out documents (heldout_fraction 0) to measure its "
            f"loss on; set data.sources.{name}.heldout_fraction, or its bound to null"
            for name in {name.partition("/")[0]: None for name in self.max_loss_increase.by_name(data)}
            if name in data.sources and data.heldout_fraction_of(name) == 0
        ]
        if self.reaction == "restore_share":
            found += self.restore.problems()
            if len(data.sources) < 2:
                found.append(f"{WHERE}.reaction: restore_share with one source has none to take share from; use warn")
        return found

    def _benchmark_problems(self, data: DataConfig, tasks: Sequence[str]) -> list[str]:
        found = []
        for task, drop in self.max_benchmark_drop.items():
            if task not in tasks:
                found.append(
                    f"{WHERE}.max_benchmark_drop: {task!r} is not measured; add it to evaluation.benchmarks.tasks "
                    f"({', '.join(tasks) or 'none'})"
                )
            if not 0 < drop <= 100:
                found.append(f"{WHERE}.max_benchmark_drop.{task}: {drop} is not a number of points in (0, 100]")
            if self.reaction == "restore_share" and not self.benchmark_sources.get(task):
                found.append(
                    f"{WHERE}.benchmark_sources: restore_share needs to know which sources stand for {task}; name them"
                )
        for task, names in self.benchmark_sources.items():
            if task not in self.max_benchmark_drop:
                found.append(f"{WHERE}.benchmark_sources: {task!r} has no bound in max_benchmark_drop; give one")
            found += [
                f"{WHERE}.benchmark_sources.{task}: unknown source {name!r}; sources are {', '.join(data.sources)}"
                for name in names
                if name not in data.sources
            ]
        return found

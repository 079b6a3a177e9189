"""What a run could do at its start, how much of it is lost, and what was said and done about that.

A figure is a held-out loss of a component or source (`loss of web_en`) or an accuracy (`acc of arc_easy`). Its baseline
is its first measurement: at step 0, or where the run began to be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_synE.config.data import DataConfig
from megatron_synE.config.guard import GuardConfig
from megatron_synE.config.json_fields import JsonFields

TOLD_AGAIN = 2.0
"""What was told is told again where it has become worse by this factor."""
ADVICE = (
    "To go on from there, raise the bound, or set evaluation.guard.reaction to warn or restore_share; or point "
    "`latest` in checkpoint.save to an earlier checkpoint, and change the mixture"
)


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    value: float
    """Mean loss in nats per token; or accuracy, 0 to 1."""
    measured_on: str
    """What identifies the held-out text or the requests: only the same can be compared."""


@dataclass(frozen=True)
class Baseline(Figure):
    """What a figure is compared with."""

    step: int
    """Steps done when it was measured."""


@dataclass(frozen=True)
class Bound:
    """How much worse a figure may become."""

    limit: float
    """In nats per token, or in points of accuracy."""
    sources: tuple[str, ...]
    """Those that stand for it: share goes back to them."""
    is_loss: bool

    def worsening(self, baseline: float, value: float) -> float:
        """How much worse `value` is than `baseline`, in the unit of `limit`; negative where it is better."""
        if self.is_loss:
            return value - baseline
        return round(100 * (baseline - value), 9)  # 0.50 - 0.48 in binary is a little more than 2 points


@dataclass(frozen=True)
class Excess:
    """A figure past its bound."""

    what: str
    value: float
    baseline: Baseline
    bound: Bound

    @property
    def worsening(self) -> float:
        """In the unit of the bound."""
        return self.bound.worsening(self.baseline.value, self.value)

    def describe(self) -> str:
        """`loss of web_en 3.2000, 0.2000 above 3.0000 at step 0 (bound 0.1)`."""
        unit, direction = ("", "above") if self.bound.is_loss else (" points", "below")
        return (
            f"{self.what} {self.value:.4f}, {self.worsening:.4f}{unit} {direction} {self.baseline.value:.4f} "
            f"at step {self.baseline.step} (bound {self.bound.limit:g})"
        )


@dataclass(frozen=True)
class Told:
    """That a figure is past its bound, as it was told last."""

    step: int
    value: float


def loss_figures(losses: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, Figure]:
    """The figures of an evaluation: of each component, and of each source the mean over all its tokens.

    Args: component → mean loss, and the number of tokens that it is the mean of.
    """
    found = {f"loss of {name}": Figure(loss, f"{tokens[name]} tokens") for name, loss in losses.items()}
    by_source: dict[str, list[str]] = {}
    for name in losses:
        by_source.setdefault(name.partition("/")[0], []).append(name)
    for source, names in by_source.items():
        total = sum(tokens[name] for name in names)
        mean = math.fsum(losses[name] * tokens[name] for name in names) / total
        found[f"loss of {source}"] = Figure(losses[source] if names == [source] else mean, f"{total} tokens")
    return found


def accuracy_figures(scores: Mapping[str, Mapping[str, float]], fingerprints: Mapping[str, str]) -> dict[str, Figure]:
    """The figures of a benchmark measurement.

    Args: task → metric → value, of which `acc` counts, and a hash of what was asked.
    """
    return {f"acc of {task}": Figure(values["acc"], fingerprints[task]) for task, values in scores.items()}


def bounds_of(guard: GuardConfig, data: DataConfig) -> dict[str, Bound]:
    """Figure → its bound, of all that the guard watches."""
    losses = guard.max_loss_increase.by_name(data)
    found = {f"loss of {name}": Bound(limit, (name.partition("/")[0],), True) for name, limit in losses.items()}
    for task, points in guard.max_benchmark_drop.items():
        found[f"acc of {task}"] = Bound(points, tuple(guard.benchmark_sources.get(task, ())), False)
    return found


@dataclass
class ForgettingMemory:
    """Baselines of everything that was measured, also while nothing is guarded; what was told; when share was moved."""

    baselines: dict[str, Baseline] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    """Figure past its bound → how that was told last."""
    restored: dict[str, list[int]] = field(default_factory=dict)
    """Source → the steps after which share was moved back to it, ascending."""

    def begin(self, step: int, figures: Mapping[str, Figure]) -> list[str]:
        """Make this measurement the baseline of those figures that have none, or one of other text or items."""
        new = [
            what
            for what, figure in figures.items()
            if what not in self.baselines or self.baselines[what].measured_on != figure.measured_on
        ]
        for what in new:
            self.baselines[what] = Baseline(**asdict(figures[what]), step=step)
            self.told.pop(what, None)
        return new

    def excesses(self, figures: Mapping[str, Figure], bounds: Mapping[str, Bound]) -> list[Excess]:
        """The measured figures that are past their bounds; all of them have baselines."""
        measured = [Excess(what, figures[what].value, self.baselines[what], bounds[what])
                    for what in bounds if what in figures]  # fmt: skip
        return [excess for excess in measured if excess.worsening > excess.bound.limit]

    def told_excesses(self, bounds: Mapping[str, Bound]) -> list[Excess]:
        """What was told to be past a bound, and is past those given now."""
        told = [Excess(what, told.value, self.baselines[what], bounds[what])
                for what, told in self.told.items() if what in bounds]  # fmt: skip
        return [excess for excess in told if excess.worsening > excess.bound.limit]

    def is_news(self, excess: Excess) -> bool:
        """Whether it was not told yet, or has become much worse since."""
        told = self.told.get(excess.what)
        if told is None:
            return True
        return excess.worsening >= TOLD_AGAIN * excess.bound.worsening(excess.baseline.value, told.value)

    def recovered(self, figures: Mapping[str, Figure], excesses: Sequence[Excess]) -> list[str]:
        """Forget what was told of figures that are within their bounds again; returns them."""
        past = {excess.what for excess in excesses}
        found = [what for what in self.told if what in figures and what not in past]
        for what in found:
            del self.told[what]
        return found

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "baselines": {what: asdict(baseline) for what, baseline in self.baselines.items()},
            "told": {what: asdict(told) for what, told in self.told.items()},
            "restored": {source: list(steps) for source, steps in self.restored.items()},
        }

    @staticmethod
    def from_json(content: object, where: str) -> ForgettingMemory:
        """Inverse of `to_json`. ValueError that begins with `where`, a file, and names the field."""
        fields = JsonFields(content, f"{where}: forgetting.", "use another checkpoint")
        baselines, told, restored = (fields.inner(name) for name in ("baselines", "told", "restored"))
        found = ForgettingMemory()
        for what in baselines.content:
            inner = baselines.inner(what)
            found.baselines[what] = Baseline(inner.number("value"), inner.text("measured_on"), inner.integer("step"))
        for what in told.content:
            inner = told.inner(what)
            found.told[what] = Told(inner.integer("step"), inner.number("value"))
            if what not in found.baselines:
                raise told.wrong(what, "has no baseline")
        for source in restored.content:
            found.restored[source] = restored.integers(source)
            if found.restored[source] != sorted(found.restored[source]):
                raise restored.wrong(source, "does not ascend")
        return found


def stop_text(step: int, excesses: Sequence[Excess]) -> str:
    """Why a run ends, or does not go on, and how it can."""
    listed = "; ".join(excess.describe() for excess in excesses)
    return f"evaluation.guard: after step {step} the run has forgotten more than it may: {listed}. {ADVICE}"

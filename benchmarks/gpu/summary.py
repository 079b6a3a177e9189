"""What the stages have shown, held against the bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Records = Mapping[str, Mapping[str, Any]]
"""Stage → its record (`runner.run_stage`)."""

PUBLISHED_8B_H200_TOKENS_PER_S = 10471
"""Llama-3 8B on one H200, bf16, full recomputation, sequence 4,096 (KempnerForge, mfu_scaling.md, row 1)."""


@dataclass(frozen=True)
class Bar:
    """A claim: the least value that is good enough, and how to find the value; None where nothing was measured."""

    claim: str
    least: float
    value: Callable[[Records], float | None]


def figures(records: Records, stage: str) -> dict[str, Any]:
    """What the stage has printed; nothing where it was not run."""
    return dict(records.get(stage, {}).get("figures", {}))


def case(records: Records, stage: str, **wanted: Any) -> Mapping[str, Any] | None:
    """The measured case of a stage whose fields are those wanted."""
    for found in figures(records, stage).values():
        if isinstance(found, dict) and "tokens_per_s" in found and wanted.items() <= found.items():
            return found
    return None


def smallest_share(hidden: int) -> Callable[[Records], float | None]:
    """Share of the copy rate of the slowest memory-bound op."""

    def value(records: Records) -> float | None:
        cases = [c for c in figures(records, "kernels").values() if isinstance(c, dict) and c.get("hidden") == hidden]
        return min((c["share_of_copy_rate"] for c in cases), default=None)

    return value


def share(stage: str, **wanted: Any) -> Callable[[Records], float | None]:
    """Share of the measured product rate of a case."""

    def value(records: Records) -> float | None:
        found = case(records, stage, **wanted)
        return found["share_of_gemm_rate"] if found else None

    return value


def ratio(stage: str, over: Mapping[str, Any], under: Mapping[str, Any]) -> Callable[[Records], float | None]:
    """tokens/s of one case over that of another of the same stage."""

    def value(records: Records) -> float | None:
        first, second = case(records, stage, **over), case(records, stage, **under)
        return first["tokens_per_s"] / second["tokens_per_s"] if first and second else None

    return value


def tests_hold(stage: str) -> Callable[[Records], float | None]:
    """1 where tests were run and all passed."""

    def value(records: Records) -> float | None:
        found = figures(records, stage)
        if not found.get("passed") and not found.get("failed"):
            return None
        return float(not found["failed"] and records[stage]["status"] == "passed")

    return value


def tokens_per_s(stage: str, **wanted: Any) -> Callable[[Records], float | None]:
    """tokens/s of a case."""

    def value(records: Records) -> float | None:
        found = case(records, stage, **wanted)
        return found["tokens_per_s"] if found else None

    return value


LARGEST_LOSS_DIFFERENCE = 0.01


def losses_agree(records: Records) -> float | None:
    """1 where all cases that did the same work in bf16 had the same loss before their first update."""
    wanted = {name: BF16[name] for name in ("precision", "seq_length", "documents")}
    cases = [c for c in figures(records, "step").values() if isinstance(c, dict) and wanted.items() <= c.items()]
    losses = [found["first_loss"] for found in cases if "first_loss" in found]
    return float(max(losses) / min(losses) - 1 <= LARGEST_LOSS_DIFFERENCE) if len(losses) > 1 else None


def resumes(records: Records) -> float | None:
    """1 where the killed and resumed run went on as the one that was not."""
    found = figures(records, "run").get("resumed_as_uninterrupted")
    return None if found is None else float(found)


BF16 = {"contender": "fused", "precision": "bf16", "recompute": "none", "seq_length": 8192, "documents": 1}
RECOMPUTED = {**BF16, "recompute": "full"}
PUBLISHED_SETTING = {"precision": "bf16", "recompute": "full", "seq_length": 4096}

BARS = (
    Bar("CUDA kernels against the oracle: all tests pass", 1, tests_hold("kernel_tests")),
    Bar("training in one process over nccl: all tests pass", 1, tests_hold("nccl_tests")),
    Bar("memory-bound ops, hidden 4096: least share of the copy rate", 0.85, smallest_share(4096)),
    Bar("memory-bound ops, hidden 8192: least share of the copy rate", 0.85, smallest_share(8192)),
    Bar("8B layers, bf16, full recomputation: share of the product rate", 0.55, share("step", **RECOMPUTED)),
    Bar("8B layers, bf16, no recomputation: share of the product rate", 0.60, share("step", **BF16)),
    Bar("8B layers: FP8 over bf16", 1.3, ratio("step", {**BF16, "precision": "fp8"}, BF16)),
    Bar("8B layers: FP8 of Transformer Engine over our bf16", 1.3,
        ratio("te", {**BF16, "contender": "transformer_engine", "precision": "fp8"}, BF16)),
    Bar("8B layers: losses of ours and transformers' agree within 1 %", 1, losses_agree),
    Bar("8B layers: ours over transformers eager", 1.0, ratio("step", BF16, {"contender": "hf_eager"})),
    Bar("8B layers: ours over transformers compiled", 1.0, ratio("step", BF16, {"contender": "hf_compile"})),
    Bar("8B layers: 64 isolated documents over one", 1.0, ratio("step", {**BF16, "documents": 64}, BF16)),
    Bar("whole 8B, bf16, full recomputation, sequence 4096: tokens/s", PUBLISHED_8B_H200_TOKENS_PER_S,
        tokens_per_s("whole_8b", **PUBLISHED_SETTING)),
    Bar("killed and resumed run goes on as the uninterrupted one", 1, resumes),
)  # fmt: skip


def _has_error(found: Any) -> bool:
    return isinstance(found, dict) and "error" in found


def table(records: Records) -> list[str]:
    """What became of each stage, then each bar: met, missed or unrun."""
    lines = [f"{'stage':14s} {'status':12s} {'seconds':>8s}"]
    for name, record in records.items():
        reason = record.get("reason", [])
        lines.append(
            f"{name:14s} {record['status']:12s} {record.get('seconds', 0):8.1f}  {reason[-1][:90] if reason else ''}"
        )
        cases = figures(records, name).items()
        lines += [f"    {case_name}: {found['error'][:110]}" for case_name, found in cases if _has_error(found)]
    lines += ["", f"{'bar':64s} {'least':>9s} {'measured':>9s}"]
    for bar in BARS:
        value = bar.value(records)
        verdict = "unrun" if value is None else "met" if value >= bar.least else "MISSED"
        shown = "-" if value is None else f"{value:9.5g}"
        lines.append(f"{bar.claim:64s} {bar.least:9.5g} {shown:>9s}  {verdict}")
    return lines

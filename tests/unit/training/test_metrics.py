"""metrics.jsonl: one line per event, each step once, also after a crash and a resume."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from megatron_synE.training.curves import TensorBoardCurves
from megatron_synE.training.metrics import MetricsWriter
from megatron_synE.training.throughput import make_throughput
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import train, write_job
from tests.helpers.training import ARCHITECTURE


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_resuming_drops_what_comes_after(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, resumed_step=0)
    for step in range(1, 6):
        first.write("step", step, {"loss": float(step)})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "step", "st')  # killed while writing
    second = MetricsWriter(tmp_path, resumed_step=3)
    second.write("step", 4, {"loss": 40.0, "by": {"a": math.nan}})
    second.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0, 3.0, 40.0]
    assert lines(tmp_path)[-1]["by"] == {"a": None}, "JSON has no nan"


def test_tensorboard_gets_nested_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, resumed_step=0, curves=[TensorBoardCurves(tmp_path / "tensorboard")])
    writer.write("step", 1, {"loss": 2.5, "loss_by_component": {"web/maths": 3.5}, "updated": True})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["step/loss", "step/loss_by_component/web/maths"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = MetricsWriter(None, resumed_step=0, curves=[TensorBoardCurves(tmp_path / "tensorboard")])
    writer.write("step", 1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_throughput_counts_the_models_flops() -> None:
    """Per token: 6 x weights of matrix products + 6 x layers x heads x head_dim x sequence (causal half)."""
    matmul = 4 * (64 * 8 * 2 * (8 + 2) + 3 * 64 * 176) + 64 * 249
    assert ARCHITECTURE.num_matmul_parameters() == matmul
    flops = 6 * matmul + 6 * 4 * 64 * 32
    rates = make_throughput(
        ARCHITECTURE, seq_length=32, world_size=2, peak_tflops=1e-3, device_name="CPU"
    ).rates(256, 0.5)
    assert rates["tokens_per_second"] == 512
    assert rates["tflops_per_device"] == pytest.approx(512 * flops / 2 / 1e12)
    assert rates["mfu"] == pytest.approx(512 * flops / 2 / 1e9)


def test_known_gpus_have_a_peak() -> None:
    throughput = make_throughput(
        ARCHITECTURE, seq_length=32, world_size=1, peak_tflops=None, device_name="NVIDIA H200"
    )
    assert throughput.peak_tflops == 989.0


def test_a_line_that_cannot_be_read_is_moved_aside_and_told(tmp_path: Path) -> None:
    """Defect 13: a byte that is not UTF-8 ended the next start in a traceback."""
    good = b'{"kind": "step", "step": 1, "loss": 1.0}\n'
    bad = b'{"kind": "st\xff"}\n[1]\n{"kind": 3, "step": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + bad + good + b"torn")
    writer = MetricsWriter(tmp_path, resumed_step=1)
    writer.close()
    assert writer.num_damaged == 3
    assert (tmp_path / "metrics.jsonl").read_bytes() == good + good
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().splitlines()[0] == b'{"kind": "st\xff"}'
    assert MetricsWriter(tmp_path, resumed_step=1).num_damaged == 0


def test_only_what_holds_is_kept(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resumed_step=0)
    for kind in ("step", "evaluation", "decision"):
        writer.write(kind, 4, {})
    writer.rewind(4, lambda record: record["kind"] != "decision")
    writer.write("decision", 4, {"again": True})
    writer.close()
    assert [line["kind"] for line in lines(tmp_path)] == ["step", "evaluation", "decision"]
    assert lines(tmp_path)[-1]["again"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=r"logging\.directory: .*file/logs cannot be written"):
        MetricsWriter(tmp_path / "file" / "logs", resumed_step=0)


def test_every_record_says_where_the_run_stood_and_when(tmp_path: Path) -> None:
    """Steps, evaluations, decisions, checkpoints, incidents and changes of the configuration, over a resume."""
    began = time.time()
    arguments = write_job(tmp_path, data={"heldout_fraction": 0.2}, training={"fail_on_nan": False})
    run_distributed(train, 1, [*arguments, "--training.exit_after_steps", "4"])
    run_distributed(
        train, 1, [*arguments, "--optimizer.lr", "1e-4", "--healing.threshold", "0.001", "--healing.window_steps", "8"]
    )
    found = lines(tmp_path / "run")
    kinds = {record["kind"] for record in found}
    assert {"step", "evaluation", "decision", "checkpoint", "configuration", "incident"} <= kinds, kinds
    times = [record["time"] for record in found]
    assert times == sorted(times) and began - 1 < times[0] <= times[-1] < time.time() + 1
    for record in found:
        assert {"step", "consumed_samples", "consumed_tokens"} <= set(record), record
    evaluation = next(record for record in found if record["kind"] == "evaluation")
    low, high = min(evaluation["loss"].values()), max(evaluation["loss"].values())
    assert low < evaluation["mean_loss"] < high and low < evaluation["mixture_loss"] < high

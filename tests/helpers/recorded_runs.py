"""A run's folder as the trainer leaves it, made without training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job
from megatron_synE.data import DataStream
from megatron_synE.training.config_changes import as_json
from tests.helpers.runs import SEQ_LENGTH, write_job

STEPS, BATCH_SIZE, SAVED_STEP, RESUMED_STEP = 15, 8, 12, 6
PASSED_OVER = range(20, 24)
"""Samples that a rollback left out."""
START_TIME = 1_700_000_000.0


class RecordedRun:
    """A run of 20 planned steps that was killed after step 8, resumed from step 6, and has come to step 15; its newest
    checkpoint is of step 12."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder = folder / "run"
        self.folder.mkdir(parents=True)
        self.job: JobConfig = parse_job(write_job(folder, checkpoint={"save": "run"}, **sections))
        self.stream = DataStream.build(self.job.data)
        self.records: list[dict[str, Any]] = []
        self.saved_stream: dict[str, Any] = {}
        self.consumed = SAVED_STEP * BATCH_SIZE
        self._write_records()
        self.state = {
            "step": SAVED_STEP, "consumed_samples": self.consumed, "config": as_json(self.job),
            "trajectory": {"stretches": [[0, 0, BATCH_SIZE]], "passed_over": [[PASSED_OVER.start, PASSED_OVER.stop]]},
            "stream": self.saved_stream,
        }  # fmt: skip
        self.metrics_file = self.folder / "metrics.jsonl"
        self.write(self.records)
        (self.folder / "latest").write_text(f"step_{SAVED_STEP:08d}\n")

    def write(self, records: list[dict[str, Any]]) -> None:
        """These as metrics.jsonl."""
        self.metrics_file.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")

    def read_state(self, path: Path) -> Mapping[str, Any]:
        """Stands in for the checkpoint's reader."""
        assert (path / "latest").exists()
        return self.state

    def _add(self, kind: str, step: int, **values: Any) -> None:
        tokens = step * BATCH_SIZE * SEQ_LENGTH
        time = START_TIME + len(self.records)
        place = {"consumed_samples": step * BATCH_SIZE, "consumed_tokens": tokens}
        self.records.append({"kind": kind, "step": step, "time": time, **place, **values})

    def _write_records(self) -> None:
        self._start(0)
        self._evaluate(0)
        for step in range(1, STEPS + 1):
            if step == RESUMED_STEP + 1:
                self._start(RESUMED_STEP)
                self._add("configuration", RESUMED_STEP, changes={"optimizer.lr": [1e-3, 5e-4]})
                self._incident(RESUMED_STEP + 3)
            first_sample = (step - 1) * BATCH_SIZE
            if self.stream.next_adjustment_sample(first_sample) == first_sample:
                perplexity = self._perplexity(step)
                decision = self.stream.adjust(first_sample, perplexity)
                if decision is not None:
                    self._add("decision", step - 1, **json.loads(json.dumps(decision.__dict__)))
            self._step(step, first_sample)
            if step % 5 == 0:
                self._evaluate(step)
            if step % 6 == 0:
                self._add("checkpoint", step, seconds=0.25)
            if step == SAVED_STEP:
                self.saved_stream = json.loads(json.dumps(self.stream.state_dict(self.consumed)))

    def _incident(self, step: int) -> None:
        """Of a later step than the one that it went back to."""
        documents = [{"component": "book", "corpus": "book", "epoch": 0, "documents": list(range(50))}]
        self._add(
            "incident", RESUMED_STEP, cause="loss 80: 12 robust deviations above the median 5", action="rollback",
            samples=[[PASSED_OVER.start, PASSED_OVER.stop]], resumed_from_step=RESUMED_STEP, documents=documents,
        )  # fmt: skip
        self.records[-1]["step"] = step

    def _start(self, step: int) -> None:
        self._add(
            "start", step, program="pretrain_llama3_synE.py", arguments=["--config", "a job.yaml"], directory="/gone",
            num_processes=2, processes_per_node=2, device="a GPU", host="node7", platform="Linux", num_processors=8,
            versions={"python": "3.11", "torch": "2.6" if step == 0 else "2.7"}, commit="abc123", num_parameters=12_345,
            seq_length=SEQ_LENGTH, num_samples=self.stream.num_samples, last_step=20, config=as_json(self.job),
            components=[
                {"name": component.name, "identity": component.identity, "num_tokens": component.num_tokens}
                for component in self.stream.components
            ],
        )  # fmt: skip

    def _step(self, step: int, first_sample: int) -> None:
        loss = 6 - step / 10 + math.sin(step)
        self._add(
            "step", step, loss=loss, loss_by_component={"book": loss - 1, "web/law": loss + 0.1},
            grad_norm=1 + step / 7, learning_rate=1e-3 / step, step_seconds=0.5, data_seconds=0.01,
            peak_memory_gib=1 + step / 100,
            tokens_per_second=BATCH_SIZE * SEQ_LENGTH / 0.5, tflops_per_device=0.1, mfu=0.4, num_tokens=100,
            global_batch_size=BATCH_SIZE, shares=self.stream.shares(first_sample), updated=step != 4,
        )  # fmt: skip

    def _evaluate(self, step: int) -> None:
        # The book gets worse, the web better.
        loss = {"book": 4 + step / 50, "web/law": 5 - step / 10, "web/maths": 5.5 - step / 11}
        perplexity = {name: math.exp(value) for name, value in loss.items()}
        mean = sum(loss.values()) / 3
        self._add("evaluation", step, loss=loss, perplexity=perplexity, mean_loss=mean, mixture_loss=mean + 0.1)

    def _perplexity(self, step: int) -> dict[str, float]:
        return {"book": 60.0, "web/law": 100.0 + 5 * step, "web/maths": 90.0 - step}

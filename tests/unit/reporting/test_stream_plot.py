"""What a picture of a run shows, and what it leaves out."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_synE.config.data import AdjustmentConfig, DataConfig, SourceConfig, StageConfig
from megatron_synE.data import DataStream
from megatron_synE.reporting.colours import colours
from megatron_synE.reporting.records import RunRecords, read_records
from megatron_synE.reporting.stream_plot import clipped, marks, stream_figure, within
from tests.helpers.corpora import random_documents, write_corpus

SEQ_LENGTH = 16

pytest.importorskip("matplotlib")


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """A source with topics, and one whose only epoch ends in the second stage."""
    rng = np.random.default_rng(0)
    web = write_corpus(
        tmp_path / "web", random_documents(rng, 200), topics=rng.integers(0, 2, 200), names=("law", "maths")
    )
    book = write_corpus(tmp_path / "book", random_documents(rng, 30))
    return DataConfig(
        {"web": SourceConfig(web, topics=True), "book": SourceConfig(book, max_epochs=1)},
        [
            StageConfig("first", 80 * SEQ_LENGTH, {"web": 0.75, "book": 0.25}),
            StageConfig("second", 70 * SEQ_LENGTH, {"web": 0.5, "book": 0.5}, adjust=False),
            StageConfig("the_very_last", SEQ_LENGTH, {"web": 1}),
        ],
        seq_length=SEQ_LENGTH,
        exhausted="reweight",
        adjustment=AdjustmentConfig("topic_perplexity", interval_tokens=20 * SEQ_LENGTH, cap=0.9),
    )


def adjusted(config: DataConfig) -> DataStream:
    stream = DataStream.build(config)
    for sample, law in ((0, 5.0), (20, 6.0), (40, 8.0)):
        stream.adjust(sample, {"web/law": law, "web/maths": 4.0})
    return stream


def written(folder: Path) -> Path:
    """Records as the trainer writes them; the last line is being written."""
    steps = [{"kind": "step", "consumed_tokens": 16 * n, "loss": 9 - n / 20} for n in range(1, 100)]
    steps[3]["loss"], steps[50]["loss"] = 400.0, None  # type: ignore[assignment]
    others: list[dict[str, Any]] = [
        {"kind": "evaluation", "consumed_tokens": 320, "loss": {"web/law": 8.0, "web/maths": 7.5, "book": 7.0}},
        {"kind": "resume", "consumed_tokens": 640},
        {"kind": "configuration", "consumed_tokens": 640, "changes": {}},
        {"kind": "checkpoint", "consumed_tokens": 640, "seconds": 1},
    ]
    lines = [json.dumps({"step": n, **record}) for n, record in enumerate((*steps, *others))]
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:5], '{"kind": "st', *lines[5:], '{"ki']))
    return folder / "metrics.jsonl"


def titles(figure: Any) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_before_training_there_is_the_mixture_alone(config: DataConfig, tmp_path: Path) -> None:
    stream = DataStream.build(config)
    figure = stream_figure(stream, read_records(tmp_path / "none.jsonl"), range(stream.num_samples), None)
    assert titles(figure) == ["Mixture (planned, 1 stages too narrow for their names)"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["first", "second"]


def test_a_run_shows_losses_and_perplexities(config: DataConfig, tmp_path: Path) -> None:
    stream, records = adjusted(config), read_records(written(tmp_path))
    assert records.num_damaged == 1
    figure = stream_figure(stream, records, range(stream.num_samples), 90)
    mixture, loss, topics = titles(figure)
    assert mixture.startswith("Mixture (90 of 151 samples read, ")
    assert loss.startswith("Loss (") and loss.endswith(
        "1 of 102 values above the edge are cut off, 1 are no number; 1 unreadable records left out"
    )
    assert figure.axes[1].get_ylim()[1] < 15
    assert topics.startswith("Held-out perplexity") and len(figure.axes[2].lines) == 2


def test_a_part_of_the_run(config: DataConfig, tmp_path: Path) -> None:
    stream, records = adjusted(config), read_records(written(tmp_path))
    figure = stream_figure(stream, records, range(30, 50), 90)
    assert "samples 30 to 50 shown" in titles(figure)[0] and figure.axes[-1].get_xlim() == (480, 800)
    (training, *heldout) = figure.axes[1].lines
    assert training.get_xdata()[0] == 480 and training.get_xdata()[-1] == 800 and not heldout


def test_marks_stand_where_things_happened(config: DataConfig, tmp_path: Path) -> None:
    stream, records = adjusted(config), read_records(written(tmp_path))
    end = stream.num_samples * SEQ_LENGTH
    found = marks(stream, within(records, 0, end), 0, end)
    exhausted = [segment.start for segment in stream.timeline.segments if segment.reason == "exhausted"]
    assert exhausted and found == {
        "adjustment": [20 * SEQ_LENGTH, 40 * SEQ_LENGTH],
        "measured": [0],
        "exhausted": [sample * SEQ_LENGTH for sample in exhausted],
        "resume": [640],
        "configuration": [640],
    }
    legend = stream_figure(stream, records, range(stream.num_samples), 90).legends[0]
    told = [text.get_text() for text in legend.get_texts()]
    assert told[:4] == ["book", "web", "  maths", "  law"] and "resumed (1)" in told


def test_colours_are_grouped_by_source() -> None:
    names = ["book", *(f"web/{n}" for n in range(9)), *(f"zh/{n}" for n in range(3))]
    hues: dict[str, set[float]] = {}
    found = colours(names)
    for name, colour in found.items():
        hues.setdefault(name.partition("/")[0], set()).add(round(colorsys.rgb_to_hls(*colour)[0], 3))
    assert all(len(values) == 1 for values in hues.values())
    assert len(set.union(*hues.values())) == 3 and len(set(found.values())) == len(names)


def test_many_components_are_told_by_source(tmp_path: Path) -> None:
    count = 60
    corpus = write_corpus(
        tmp_path / "web", [[1, 2, 3]] * 600, topics=np.arange(600) % count, names=[f"topic{n}" for n in range(count)]
    )
    stage = StageConfig("one", 30 * SEQ_LENGTH, {"web": 1})
    stream = DataStream.build(DataConfig({"web": SourceConfig(corpus, topics=True)}, [stage], seq_length=SEQ_LENGTH))
    legend = stream_figure(stream, RunRecords(), range(30), None).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["web (60 topics)"]


def test_limits() -> None:
    assert clipped([3.0, 3.0]) == ((2.5, 3.5), "")
    low, high = clipped([1.0, 2.0])[0]
    assert low < 1 and high > 2
    limits, said = clipped([1.0] * 50 + [2.0] * 50 + [1e9], num_missing=1)
    assert limits[1] < 3 and said == "1 of 102 values above the edge are cut off, 1 are no number"

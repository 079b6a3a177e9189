"""Per-document annotations: parts and restarts, and everything that is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.corpus.annotations import NO_SCORE, Annotations, AnnotationWriter, write_labels
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter

NUM_DOCUMENTS = 25


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "c", NUM_DOCUMENTS)
    return tmp_path / "c"


def write_corpus(prefix: Path, num_documents: int) -> None:
    with IndexedCorpusWriter(prefix, np.uint16) as writer:
        writer.add_documents(np.arange(2 * num_documents), np.full(num_documents, 2))
        writer.finalize()


def scores(documents: range) -> np.ndarray:
    return np.array([1 + document / 7 for document in documents], dtype=np.float32)


def annotate(prefix: Path, part_size: int = 10, **info: object) -> None:
    writer = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "m", **info}, part_size)
    for part in writer.pending_parts():
        writer.write_part(part, scores(writer.part_range(part)))
    writer.finalize()


def test_written_in_parts_and_read_back(prefix: Path) -> None:
    annotate(prefix)
    annotations = Annotations(prefix)
    values = annotations.get("perplexity")
    assert values.dtype == np.float32 and not values.flags.writeable
    assert values.tolist() == scores(range(NUM_DOCUMENTS)).tolist()
    assert annotations.info("perplexity")["annotator"] == {"model": "m"}
    assert annotations.has("perplexity") and not annotations.has("topic")
    assert not Path(f"{prefix}.perplexity.parts").exists()


def test_a_killed_job_goes_on_after_its_finished_parts(prefix: Path) -> None:
    first = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "m"}, 10)
    assert first.pending_parts() == [0, 1, 2]
    first.write_part(1, scores(first.part_range(1)))
    assert not Annotations(prefix).has("perplexity")
    second = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "m"}, 10)
    assert second.pending_parts() == [0, 2]


@pytest.mark.parametrize(("model", "part_size"), [("another", 10), ("m", 5)])
def test_parts_of_another_job_are_not_taken_over(prefix: Path, model: str, part_size: int) -> None:
    first = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "m"}, 10)
    first.write_part(0, scores(first.part_range(0)))
    second = AnnotationWriter(prefix, "perplexity", np.float32, {"model": model}, part_size)
    assert second.pending_parts() == list(range(second.num_parts))


def test_parts_of_other_content_are_not_taken_over(prefix: Path) -> None:
    first = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "m"}, 10)
    first.write_part(0, scores(first.part_range(0)))
    write_corpus(prefix, NUM_DOCUMENTS + 1)
    assert AnnotationWriter(prefix, "perplexity", np.float32, {"model": "m"}, 10).pending_parts() == [0, 1, 2]


def test_a_stale_annotation_is_refused(prefix: Path) -> None:
    annotate(prefix)
    write_corpus(prefix, NUM_DOCUMENTS + 1)
    with pytest.raises(ValueError, match=r"c\.perplexity\.json: fingerprint is .* other content"):
        Annotations(prefix).get("perplexity")


def test_a_foreign_annotation_is_refused(prefix: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "d", NUM_DOCUMENTS - 5)
    annotate(prefix)
    for kind in ("npy", "json"):
        (tmp_path / f"d.perplexity.{kind}").write_bytes((tmp_path / f"c.perplexity.{kind}").read_bytes())
    with pytest.raises(ValueError, match=r"d\.perplexity\.json"):
        Annotations(tmp_path / "d").get("perplexity")


def test_another_annotator_replaces_only_where_it_is_said(prefix: Path) -> None:
    annotate(prefix)
    with pytest.raises(ValueError, match=r'c\.perplexity\.json: .* already, by \{"model": "m"\}.*--overwrite'):
        AnnotationWriter(prefix, "perplexity", np.float32, {"model": "n"}, 10)
    assert Annotations(prefix).info("perplexity")["annotator"] == {"model": "m"}
    writer = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "n"}, 100, overwrite=True)
    assert writer.replaces == '{"model": "m"}'
    writer.write_part(0, scores(range(NUM_DOCUMENTS)) + 1)
    assert writer.finalize() and Annotations(prefix).info("perplexity")["annotator"] == {"model": "n"}


def test_another_annotator_that_was_faster_is_not_replaced(prefix: Path) -> None:
    slow = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "n"}, 100)
    annotate(prefix)
    slow = AnnotationWriter(prefix, "perplexity", np.float32, {"model": "m"}, 100)
    slow.annotator_info = {"model": "n"}
    slow.directory.mkdir()
    slow.write_part(0, scores(range(NUM_DOCUMENTS)))
    with pytest.raises(ValueError, match="annotated already"):
        slow.finalize()


def test_a_missing_annotation_names_the_remedy(prefix: Path) -> None:
    with pytest.raises(ValueError, match=r"c\.topic\.json.*annotate_corpus\.py topic"):
        Annotations(prefix).get("topic")


def test_nan_is_refused_when_written(prefix: Path) -> None:
    writer = AnnotationWriter(prefix, "perplexity", np.float32, {}, 10)
    values = scores(writer.part_range(1))
    values[3] = np.nan
    with pytest.raises(ValueError, match="perplexity of document 13 is nan"):
        writer.write_part(1, values)
    assert writer.pending_parts() == [0, 1, 2]


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (0.5, "0.5"), (-3.0, "-3.0")])
def test_impossible_scores_are_refused_when_read(prefix: Path, value: float, shown: str) -> None:
    annotate(prefix)
    path = Path(f"{prefix}.perplexity.npy")
    values = np.load(path)
    values[17] = value
    np.save(path, values)
    with pytest.raises(ValueError, match=rf"c\.perplexity\.npy: perplexity of document 17 is {shown}"):
        Annotations(prefix).get("perplexity")


def test_a_document_without_a_score_is_no_error(prefix: Path) -> None:
    writer = AnnotationWriter(prefix, "perplexity", np.float32, {}, 100)
    writer.write_part(0, np.full(NUM_DOCUMENTS, NO_SCORE))
    writer.finalize()
    assert (Annotations(prefix).get("perplexity") == NO_SCORE).all()


def test_topics_need_names(prefix: Path) -> None:
    fingerprint, numbers = IndexedCorpus(prefix).fingerprint, np.zeros(NUM_DOCUMENTS, np.int16)
    numbers[4] = 2
    with pytest.raises(ValueError, match="topic of document 4 is 2"):
        write_labels(prefix, numbers, ["a", "b"], fingerprint, {})
    write_labels(prefix, numbers, ["a", "b", "c"], fingerprint, {})
    assert Annotations(prefix).topic_names == ["a", "b", "c"]
    info = json.loads(Path(f"{prefix}.topic.json").read_text())
    Path(f"{prefix}.topic.json").write_text(json.dumps({**info, "names": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"c\.topic\.npy: topic of document 4 is 2"):
        Annotations(prefix).get("topic")


@pytest.mark.parametrize("values", [np.zeros(3, np.float32), np.zeros(NUM_DOCUMENTS, np.float64)])
def test_another_shape_or_dtype_is_refused(prefix: Path, values: np.ndarray) -> None:
    annotate(prefix)
    np.save(f"{prefix}.perplexity.npy", values)
    with pytest.raises(ValueError, match=r"c\.perplexity\.npy: holds"):
        Annotations(prefix).get("perplexity")


def test_a_pickle_is_not_loaded(prefix: Path) -> None:
    annotate(prefix)
    np.save(f"{prefix}.perplexity.npy", np.array([object()] * NUM_DOCUMENTS), allow_pickle=True)
    with pytest.raises(ValueError, match=r"c\.perplexity\.npy: cannot be read"):
        Annotations(prefix).get("perplexity")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 99, "name": "perplexity"}'])
def test_a_damaged_description_is_refused(prefix: Path, content: str) -> None:
    annotate(prefix)
    Path(f"{prefix}.perplexity.json").write_text(content)
    with pytest.raises(ValueError, match=r"c\.perplexity\.json"):
        Annotations(prefix).get("perplexity")


@pytest.mark.parametrize("name", ["../evil", "Topic", ""])
def test_names_stay_beside_the_corpus(prefix: Path, name: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        Annotations(prefix).get(name)

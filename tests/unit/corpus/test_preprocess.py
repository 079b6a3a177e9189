"""From text to corpora: equal to megatron-core's builder on real text, the same with any number of workers."""

import gzip
import json
import random
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.corpus.annotations import Annotations
from megatron_synE.corpus.indexed import IndexedCorpus, token_dtype
from megatron_synE.corpus.preprocess import LabelColumn, PreprocessOptions, preprocess
from megatron_synE.corpus.tokenizers import build_tokenizer
from tests.unit.corpus.conftest import ROOT, SAMPLE

SHARED = ROOT.parent / "shared" / "corpus"


def llama3_model() -> Path:
    llama_models = pytest.importorskip("llama_models", reason="llama-models carries Llama-3's tokenizer.model")
    return Path(llama_models.__path__[0]) / "llama3" / "tokenizer.model"


def build_with_megatron_core(source: Path, prefix: Path, tokenizer_model: Path) -> None:
    """megatron-core's builder, fed with the ids of the format's reference library and the end-of-document id."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    reference = build_tokenizer("auto", tokenizer_model, fast=False)
    assert reference.backend.name in ("tokenizers", "tiktoken")
    with gzip.open(source) as file:
        texts = [json.loads(line)["text"] for line in file]
    tokens, offsets = reference.encode_batch(texts)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=token_dtype(reference.vocab_size))
    for start, stop in pairwise(offsets):
        ids = [*tokens[start:stop].tolist(), reference.eod_id]
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("name", ["web_zh", "code_en"])
@pytest.mark.parametrize("tokenizer_name", ["trained_here", "llama3"])
def test_real_text_is_byte_identical_to_megatron_core(
    tmp_path: Path, hf_tokenizer: Path, name: str, tokenizer_name: str
) -> None:
    source = SHARED / f"{name}.jsonl.gz"
    if not source.is_file():
        pytest.skip("the trial corpora are not here (../shared/corpus)")
    model = hf_tokenizer if tokenizer_name == "trained_here" else llama3_model()
    build_with_megatron_core(source, tmp_path / "theirs", model)
    tokenizer = build_tokenizer("auto", model)
    assert tokenizer.backend.name == "gigatoken"
    prefixes, _ = preprocess([source], str(tmp_path / "ours"), tokenizer, PreprocessOptions(append_eod=True))
    for kind in ("bin", "idx"):
        assert Path(f"{prefixes['text']}.{kind}").read_bytes() == (tmp_path / f"theirs.{kind}").read_bytes()


def write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def test_megatron_core_reads_it(tmp_path: Path, hf_tokenizer: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokenizer = build_tokenizer("auto", hf_tokenizer)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"document {i} 文档"} for i in range(5)])
    prefixes, progress = preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions(append_eod=True))
    theirs, ours = IndexedDataset(prefixes["text"]), IndexedCorpus(prefixes["text"])
    assert len(theirs) == ours.num_documents == progress.num_documents == 5
    for i in range(5):
        assert theirs[i].tolist() == ours.document(i).tolist()
        *ids, last = ours.document(i)
        assert tokenizer.decode(np.array(ids)) == f"document {i} 文档" and last == tokenizer.eod_id
    assert ours.tokenizer == tokenizer.describe()


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path, hf_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_synE.corpus.readers.iter_chunks.__defaults__", (20_000,))
    files = [SAMPLE / "web_en.jsonl", SAMPLE / "web_zh.jsonl"]
    tokenizer, options = build_tokenizer("auto", hf_tokenizer), PreprocessOptions(append_eod=True, label_key="topic")
    made = [
        preprocess(files, str(tmp_path / str(n)), tokenizer, options, num_workers=n)[0]["text"] for n in (1, 2)
    ]
    for kind in ("bin", "idx", "topic.npy"):
        assert Path(f"{made[0]}.{kind}").read_bytes() == Path(f"{made[1]}.{kind}").read_bytes()


def test_several_keys_give_aligned_corpora(tmp_path: Path, hf_tokenizer: Path) -> None:
    records = [{"text": "one", "title": "1"}, {"text": "two"}, {"text": "three", "title": "3"}]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    tokenizer = build_tokenizer("auto", hf_tokenizer)
    prefixes, progress = preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions(keys=("text", "title")))
    assert prefixes == {key: f"{tmp_path}/o_{key}_document" for key in ("text", "title")}
    corpora = {key: IndexedCorpus(prefix) for key, prefix in prefixes.items()}
    assert [tokenizer.decode(corpora["text"].document(i)) for i in range(2)] == ["one", "three"]
    assert [tokenizer.decode(corpora["title"].document(i)) for i in range(2)] == ["1", "3"]
    assert progress.skipped == {"missing key 'title'": 1}


def test_split_sentences_as_megatron_does(tmp_path: Path, hf_tokenizer: Path) -> None:
    """Each sentence is a sequence; the end-of-document token belongs to the last one."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "It rains. We stay here! Why?"}, {"text": "One more."}])
    tokenizer = build_tokenizer("auto", hf_tokenizer)
    options = PreprocessOptions(append_eod=True, split_sentences=True)
    prefixes, _ = preprocess([path], str(tmp_path / "o"), tokenizer, options)
    assert prefixes["text"].endswith("o_text_sentence")
    corpus = IndexedCorpus(prefixes["text"])
    assert corpus.document_boundaries.tolist() == [0, 3, 4]
    sentences = ["It rains.", "We stay here!", "Why?", "One more."]
    ids = [tokenizer.encode_batch([sentence])[0].tolist() for sentence in sentences]
    ids[2].append(tokenizer.eod_id)
    ids[3].append(tokenizer.eod_id)
    assert corpus.sequence_lengths.tolist() == [len(sequence) for sequence in ids]
    assert corpus.tokens.tolist() == list(chain(*ids))


def test_labels_become_the_topic_annotation(tmp_path: Path, hf_tokenizer: Path) -> None:
    labels = ["law", "art", "law", "music", "art"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "topic": label} for i, label in enumerate(labels)])
    options = PreprocessOptions(label_key="topic")
    prefixes, _ = preprocess([path], str(tmp_path / "o"), build_tokenizer("auto", hf_tokenizer), options)
    annotations = Annotations(prefixes["text"])
    topics = annotations.get("topic")
    assert topics.dtype == np.int16 and annotations.topic_names == ["art", "law", "music"]
    assert [annotations.topic_names[number] for number in topics] == labels


def test_label_numbers_do_not_depend_on_the_order() -> None:
    labels = random.Random(0).choices("abcdefgh", k=100)
    for seed in range(3):
        shuffled = random.Random(seed).sample(labels, k=100)
        column = LabelColumn()
        column.extend(shuffled[:40])
        column.extend(shuffled[40:])
        numbers, names = column.numbered()
        assert names == sorted(set(labels)) and [names[number] for number in numbers] == shuffled


def test_append_eod_needs_a_token(tmp_path: Path, hf_tokenizer: Path) -> None:
    content = json.loads((hf_tokenizer / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = build_tokenizer("auto", tmp_path)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="--append-eod"):
        preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions(append_eod=True))


@pytest.mark.parametrize(("strict", "message"), [(False, "no usable document"), (True, r"a\.jsonl:1: empty document")])
def test_input_without_documents_is_an_error_and_leaves_nothing(
    tmp_path: Path, hf_tokenizer: Path, strict: bool, message: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": " "}, {"key": "x"}])
    with pytest.raises(ValueError, match=message):
        preprocess(
            [path], str(tmp_path / "out" / "o"), build_tokenizer("auto", hf_tokenizer), PreprocessOptions(strict=strict)
        )
    assert list((tmp_path / "out").iterdir()) == []

"""From text to corpora: equal to megatron-core's builder on real text, the same with any number of workers."""

import gzip
import json
import os
import random
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from megatron_synE.corpus.annotations import Annotations
from megatron_synE.corpus.document_table import DocumentRecord, DocumentTable
from megatron_synE.corpus.indexed import IndexedCorpus, token_dtype
from megatron_synE.corpus.preprocess import LabelColumn, PreprocessOptions, preprocess
from megatron_synE.corpus.progress import Progress
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


SHARED_FILES = ("book_en", "book_zh", "code_en", "web_en", "web_zh")


@pytest.mark.parametrize(
    ("tokenizer_name", "name"),
    [("trained_here", "web_zh"), ("trained_here", "web_en"), *(("llama3", name) for name in SHARED_FILES)],
)
def test_real_text_is_byte_identical_to_megatron_core(
    tmp_path: Path, hf_tokenizer: Path, tokenizer_name: str, name: str
) -> None:
    """Every document of the trial corpora has the ids of the tokenizer's reference library."""
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


ADVERSARIAL = [
    "NUL \x00 inside, \x00\x00",
    "👩‍🔬👨‍👩‍👧‍👦🇨🇳🏴󠁧󠁢󠁥󠁮󠁧󠁿 e\u0301 \u200d\ufe0f",
    "x" * 1_000_000,
    "继续预训练" * 200_000,
    "<|begin_of_text|>a<|end_of_text|><|eot_id|>b<|start_header_id|>user<|end_header_id|></s><|endoftext|>",
    "line\r\nline\r\n\r\n\rline\n",
    "\ufeff\u2028\u2029\x85 \u00a0\u3000\x1c",
    "\U0010ffff\ufffe\ufffd",
    " " * 10_000 + "\t" * 100 + "end",
    '"quotes" \\ / \\u0041 {"text": "json"}',
]


@pytest.mark.parametrize("tokenizer_name", ["trained_here", "llama3"])
@pytest.mark.parametrize("form", ["escaped", "utf8", "parquet"])
def test_adversarial_text_has_the_reference_s_ids(
    tmp_path: Path, hf_tokenizer: Path, tokenizer_name: str, form: str
) -> None:
    model = hf_tokenizer if tokenizer_name == "trained_here" else llama3_model()
    tokenizer, reference = build_tokenizer("auto", model), build_tokenizer("auto", model, fast=False)
    path = tmp_path / f"a.{'parquet' if form == 'parquet' else 'jsonl'}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ADVERSARIAL}), path)
    else:
        lines = [json.dumps({"text": text}, ensure_ascii=form == "escaped") for text in ADVERSARIAL]
        lines.insert(3, '{"text": "lone \\ud83d surrogate"}')
        path.write_text("\n".join(lines), encoding="utf-8")
    prefixes, progress = preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions(append_eod=True))
    assert progress.skipped == (
        {} if form == "parquet" else {"text holds a lone surrogate, which UTF-8 cannot encode": 1}
    )
    corpus = IndexedCorpus(prefixes["text"])
    tokens, offsets = reference.encode_batch(ADVERSARIAL)
    for number, (start, stop) in enumerate(pairwise(offsets)):
        assert corpus.document(number).tolist() == [*tokens[start:stop].tolist(), tokenizer.eod_id], number


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("tokenizer_name", ["trained_here", "llama3"])
def test_special_tokens_in_text_become_tokens_only_where_asked_for(
    hf_tokenizer: Path, tokenizer_name: str, fast: bool
) -> None:
    model = hf_tokenizer if tokenizer_name == "trained_here" else llama3_model()
    name = {"trained_here": "<|endoftext|>", "llama3": "<|end_of_text|>"}[tokenizer_name]
    text = f"one{name} two"
    plain = build_tokenizer("auto", model, fast=fast)
    asked = build_tokenizer("auto", model, fast=fast, special_tokens_in_text=True)
    assert (asked.backend.name == "gigatoken") == fast
    assert plain.eod_id not in plain.encode_batch([text])[0].tolist()
    ids = asked.encode_batch([text])[0].tolist()
    assert ids.count(asked.eod_id) == 1
    at = ids.index(asked.eod_id)
    assert [ids[:at], ids[at + 1 :]] == [plain.encode_batch([part])[0].tolist() for part in ("one", " two")]
    assert asked.describe() == plain.describe()  # the same ids mean the same


def test_the_table_says_where_each_document_came_from(tmp_path: Path, hf_tokenizer: Path) -> None:
    """Several keys and workers, bad lines in between, values of every type."""
    first = [{"text": "a", "title": "A", "id": 1, "url": "u1"}, {"text": "b"}, {"text": "c", "title": "C", "meta": [1]}]
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, first)))
    second = {"text": ["d", "", "f"], "title": ["D", "E", "F"], "id": ["x", "y", None], "url": [None, "v", "w"]}
    pyarrow.parquet.write_table(pyarrow.table({**second, "meta": [{"k": 1}, None, None]}), tmp_path / "c.parquet")
    files = [tmp_path / "b.jsonl", tmp_path / "c.parquet"]
    options = PreprocessOptions(keys=("text", "title"), id_key="id", keep_keys=("url", "meta"))
    tables = []
    for num_workers in (1, 2):
        output = str(tmp_path / f"o{num_workers}")
        tokenizer = build_tokenizer("auto", hf_tokenizer)
        prefixes, _ = preprocess(files, output, tokenizer, options, num_workers=num_workers)
        for prefix in prefixes.values():
            table = DocumentTable(prefix, IndexedCorpus(prefix))
            tables.append(table.rows(range(len(table))))
    jsonl, parquet = map(str, files)
    assert tables[0] == [
        DocumentRecord("1", jsonl, 1, {"url": "u1", "meta": None}),
        DocumentRecord(None, jsonl, 5, {"url": None, "meta": "[1]"}),
        DocumentRecord("x", parquet, 1, {"url": None, "meta": '{"k": 1}'}),
        DocumentRecord(None, parquet, 3, {"url": "w", "meta": None}),
    ]
    assert tables[1:] == [tables[0]] * 3


def test_a_corpus_is_replaced_only_where_that_is_asked_for(tmp_path: Path, hf_tokenizer: Path) -> None:
    path, tokenizer = write_jsonl(tmp_path / "a.jsonl", [{"text": "old"}]), build_tokenizer("auto", hf_tokenizer)
    prefix = preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions())[0]["text"]
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write_jsonl(path, [{"text": "new"}])
    with pytest.raises(ValueError, match=r"o_text_document\.idx: there is a corpus already; --overwrite"):
        preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions())
    path.write_bytes(before["a.jsonl"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    write_jsonl(path, [{"text": "new"}])
    preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions(), overwrite=True)
    assert tokenizer.decode(IndexedCorpus(prefix).tokens) == "new"


def test_an_input_that_changes_meanwhile_is_refused(tmp_path: Path, hf_tokenizer: Path) -> None:
    path, tokenizer = write_jsonl(tmp_path / "a.jsonl", [{"text": "old"}]), build_tokenizer("auto", hf_tokenizer)

    def change(progress: Progress) -> None:
        os.utime(path, (1, 1))

    with pytest.raises(ValueError, match=r"a\.jsonl: changed while it was being read"):
        preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions(), on_progress=change)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PreprocessOptions(id_key="id"), "plain text has no keys"),
        (PreprocessOptions(keys=("text", "title")), "plain text has no keys"),
        (PreprocessOptions(separator=""), "--separator: empty"),
    ],
)
def test_what_plain_text_cannot_have_is_refused(
    tmp_path: Path, hf_tokenizer: Path, options: PreprocessOptions, message: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=message):
        preprocess([tmp_path / "a.txt"], str(tmp_path / "o"), build_tokenizer("auto", hf_tokenizer), options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]

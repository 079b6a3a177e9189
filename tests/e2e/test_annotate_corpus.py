"""train_topic_classifier, annotate_corpus and inspect_corpus as a user runs them, on the shipped sample."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.corpus.annotations import Annotations
from megatron_synE.corpus.preprocess import PreprocessOptions, preprocess
from megatron_synE.corpus.tokenizers import build_tokenizer

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "data"


def run(tool: str, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    script = [*launcher, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *script], capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = build_tokenizer("auto", SAMPLE / "tokenizer")
    output = str(tmp_path_factory.mktemp("corpus") / "web")
    return preprocess([SAMPLE / "web_zh.jsonl"], output, tokenizer, PreprocessOptions(append_eod=True))[0]["text"]


@pytest.mark.slow
def test_topics_from_training_to_the_annotation(corpus: str, tmp_path: Path) -> None:
    trained = run("train_topic_classifier", "--input", SAMPLE / "web_*.jsonl", "--output-dir", tmp_path / "c")
    assert trained.returncode == 0, trained.stderr
    report = json.loads(trained.stdout.splitlines()[-1])
    assert report["documents"] == 48 and report["accuracy"] >= 0.95 and report["macro_f1"] >= 0.95
    assert "confusion" in trained.stdout and "calibration" in trained.stdout
    assert 0 <= report["expected_calibration_error"] < 0.2
    done = run("annotate_corpus", "topic", "--prefix", corpus, "--classifier", tmp_path / "c", "--part-size", 50)
    assert done.returncode == 0, done.stderr
    annotations = Annotations(corpus)
    names = np.array(annotations.topic_names)[annotations.get("topic")]
    with open(SAMPLE / "web_zh.jsonl", encoding="utf-8") as file:
        truth = [json.loads(line)["topic"] for line in file]
    assert (names == np.array(truth)).mean() >= 0.95
    shown = run("inspect_corpus", corpus, "--document", 0)
    assert shown.returncode == 0 and "medicine_and_health: 60 documents" in shown.stdout
    checked = run("train_topic_classifier", "--input", SAMPLE / "web_en.jsonl", "--evaluate", tmp_path / "c")
    assert checked.returncode == 0 and "240 documents: accuracy" in checked.stdout


@pytest.mark.slow
def test_perplexity_is_shared_by_processes(corpus: str, tmp_path: Path) -> None:
    """Two processes under torchrun give the scores that one gives."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from megatron_synE.corpus.indexed import IndexedCorpus
    from megatron_synE.corpus.perplexity import DocumentScorer, HuggingFaceModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    arguments = ["--prefix", corpus, "--hf-dir", tmp_path / "model", "--part-size", 40, "--dtype", "float32"]
    done = run("annotate_corpus", "perplexity", *arguments, launcher=torchrun)
    assert done.returncode == 0, done.stderr
    scores = Annotations(corpus).get("perplexity")
    documents = IndexedCorpus(corpus)
    scorer = DocumentScorer(HuggingFaceModel(tmp_path / "model", dtype="float32"))
    expected = scorer.score([documents.document(i) for i in range(documents.num_documents)])
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


ERRORS = {
    "no corpus": (["topic", "--prefix", "absent", "--classifier", "x"], "no topic classifier"),
    "no model": (["perplexity", "--prefix", "absent", "--hf-dir", "absent"], "no config.json"),
    "checkpoint and model": (["perplexity", "--prefix", "p", "--hf-dir", "a", "--checkpoint", "b"], "not allowed with"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_user_errors_give_one_message(case: str) -> None:
    arguments, message = ERRORS[case]
    done = run("annotate_corpus", *arguments)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_no_copy_of_a_page_is_on_both_sides(tmp_path: Path) -> None:
    """Stumble: pages that were crawled twice were trained on and tested with."""
    rng = random.Random(0)
    pages = [" ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(60)) for _ in range(40)]
    lines = [
        {"text": text if copy == 0 else f"{text} copied", "topic": "ab"[number % 2], "url": f"https://x.org/{number}"}
        for number, text in enumerate(pages)
        for copy in range(3)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    common = ["--input", path, "--output-dir", tmp_path / "c", "--topics", "from-data", "--num-bits", 12]
    for options in ([], ["--page-key", "url"]):
        arguments = [*common, *options]
        done = run("train_topic_classifier", *arguments)
        assert done.returncode == 0, done.stderr
        assert "trained on 108 documents of 36 pages, held out 12 of 4 " in done.stdout
    done = run("train_topic_classifier", *arguments[:-1], "title")
    assert done.returncode == 1 and "missing key 'title'" in done.stderr


def test_unknown_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "topic": "cooking"}\n{"text": "b", "topic": "others"}')
    done = run("train_topic_classifier", "--input", path, "--output-dir", tmp_path / "c")
    assert done.returncode == 1 and "'cooking' is not in the label set" in done.stderr
    assert not (tmp_path / "c").exists()

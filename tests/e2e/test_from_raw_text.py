"""docs/FROM_RAW_TEXT.md, command by command as it is printed, on the sample as Parquet."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, environment, run, run_tool, succeeded

PAGE = ROOT / "docs" / "FROM_RAW_TEXT.md"
STEPS = 16


def blocks(language: str) -> list[str]:
    """The fenced blocks of the page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which all blocks were run, and what each said, by its first words."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("tools", "pretrain_llama3_synE.py", "examples"):
        (tree / name).symlink_to(ROOT / name)
    said = {}
    for block in blocks("bash"):
        result = succeeded(run("bash", "-euo", "pipefail", "-c", block, cwd=tree))
        said[block] = result.stdout
    return tree / "lab", said


def output_of(said: dict[str, str], part: str) -> str:
    """What the one block with this text printed."""
    (found,) = (output for block, output in said.items() if part in block)
    return found


@pytest.mark.slow
def test_raw_files_become_corpora_that_are_sound(walk: tuple[Path, dict[str, str]]) -> None:
    lab, said = walk
    for source in ("web_en", "web_zh", "code_en"):
        for suffix in ("bin", "idx", "documents.arrow"):
            assert (lab / "corpora" / f"{source}_text_document.{suffix}").is_file()
    first = json.loads(output_of(said, "export_corpus.py").splitlines()[0])
    assert first["url"].startswith("https://example.org/web_zh/") and first["id"].startswith("web_zh-")


@pytest.mark.slow
def test_topics_and_perplexities_are_there(walk: tuple[Path, dict[str, str]]) -> None:
    from megatron_synE.corpus.annotations import Annotations

    lab, said = walk
    assert "calibration" in output_of(said, "train_topic_classifier.py")
    annotations = Annotations(lab / "corpora" / "web_zh_text_document")
    assert (annotations.get("perplexity") > 1).all()
    rare = annotations.topic_names.index("medicine_and_health")
    assert 0 < (annotations.get("topic") == rare).sum() < 20


@pytest.mark.slow
def test_the_plan_is_the_run(walk: tuple[Path, dict[str, str]]) -> None:
    lab, said = walk
    plan = output_of(said, "inspect_stream.py --config examples/from_raw_text/run.yaml\n")
    dry = output_of(said, "--dry_run")
    for line in plan.splitlines():
        assert line in dry
    assert "medicine_and_health (5 documents)" in dry and "the run would start" in dry
    records = [json.loads(line) for line in (lab / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records if record["kind"] == "step"] == list(range(1, STEPS + 1))
    assert "mean over tokens" in output_of(said, "torchrun --nproc-per-node 2 pretrain"), "an evaluation is a table"


@pytest.mark.slow
def test_without_the_merge_the_fraction_that_works_is_said(walk: tuple[Path, dict[str, str]]) -> None:
    lab, _ = walk
    config = (ROOT / "examples" / "from_raw_text" / "run.yaml").read_text(encoding="utf-8")
    (lab / "unmerged.yaml").write_text(config.replace("min_documents: 20", "min_documents: 0"), encoding="utf-8")
    refused = run_tool("inspect_stream", "--config", lab / "unmerged.yaml", cwd=lab.parent)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
    assert "medicine_and_health (5)" in refused.stderr and "min_documents" in refused.stderr
    assert re.search(r"set data\.sources\.web_zh\.heldout_fraction to 0\.\d+ \(the smallest", refused.stderr)


@pytest.mark.slow
def test_a_step_leads_back_to_its_pages(walk: tuple[Path, dict[str, str]]) -> None:
    lab, said = walk
    assert (lab / "run.png").stat().st_size > 10_000
    text = (lab / "steps_10_to_12.jsonl").read_text(encoding="utf-8")
    assert "https://example.org/web_zh/" in text and '"web_zh-' in text
    sample = output_of(said, "--sample 80")
    urls = re.findall(r"https://example\.org/\w+/\d+", sample)
    assert urls
    source, number = urls[0].rsplit("/", 2)[1:]
    pages = (ROOT / "examples" / "data" / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
    text = json.loads(pages[int(number)])["text"]
    decoded = max((line for line in sample.splitlines() if line in text), key=len)
    assert len(decoded) > 20, "the decoded text is of the page that the table names"


@pytest.mark.slow
def test_the_export_speaks(walk: tuple[Path, dict[str, str]]) -> None:
    lab, said = walk
    spoken = output_of(said, "generate.py")
    assert "verified: all tensors are equal" in spoken and "The area of the" in spoken
    assert (lab / "hf" / "model.safetensors").is_file() and (lab / "hf" / "tokenizer.json").is_file()


def test_the_cluster_commands_are_commands() -> None:
    """tests/e2e/test_slurm.py runs the script on a Slurm; here, what the page says of it."""
    (command,) = blocks("shell")
    assert subprocess.run(["bash", "-n", "-c", command], env=environment()).returncode == 0
    for path in re.findall(r"examples/[\w./]+", command):
        assert (ROOT / path).is_file()
    script = (ROOT / "examples" / "llama3_8b" / "pretrain.slurm").read_text(encoding="utf-8")
    for variable in re.findall(r"(\w+)=\$PWD", command):
        assert f"{variable}=${{{variable}:-" in script

"""What the documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "megatron_synE/data/README.md",
    "megatron_synE/evaluation/tasks/README.md",
    "examples/data/README.md",
    "examples/cleaning/README.md",
    "docs/FROM_RAW_TEXT.md",
]  # fmt: skip


def missing(text: str, folder: Path) -> list[str]:
    """Relative links and `tools/NAME.py`, `examples/…` and `tests/…` paths in a text that lead nowhere."""
    links = [folder / target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    paths = [ROOT / path for path in re.findall(r"\b(?:tools|examples|benchmarks|tests)/[\w./-]+\w", text)]
    return sorted({str(path) for path in [*links, *paths] if not path.exists()})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_point_to_what_exists(name: str) -> None:
    assert missing((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent) == []


def test_a_path_that_moved_is_found() -> None:
    assert len(missing("see [there](nowhere.md) and `tools/gone.py`", ROOT)) == 2


def test_the_readme_names_every_tool() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in (ROOT / "tools").glob("[a-z]*.py") if path.stem not in text] == []


@pytest.mark.parametrize("target", ["quickstart", "test", "check", "bench"])
def test_make_targets_of_the_documents_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    documents = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS[:2])
    assert re.search(rf"^{target}:", makefile, re.MULTILINE) and f"make {target}" in documents


def test_no_two_test_modules_have_one_name() -> None:
    # Folders of tests without an __init__.py share one name space: pytest would not collect the second one.
    folders = [ROOT / "tests" / name for name in ("unit", "e2e")]
    names = [path.name for folder in folders for path in folder.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

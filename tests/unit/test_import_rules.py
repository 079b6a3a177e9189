"""Who may import whom (the house's plan in CONTRIBUTING.md), read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "megatron_synE"
EXTENSIONS = {"_index", "_kernels_cpu", "_kernels_cuda"}

# Part of the package → what of ours it may import. A name with a dot allows that module only.
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "command_line": set(),
    "progress": set(),
    "journal": set(),
    "sandbox": set(),
    "kernels": {"_kernels_cpu", "_kernels_cuda"},
    "runtime": {"config"},
    "corpus": {"config", "progress"},
    "data": {"config", "progress", "_index", "corpus.indexed", "corpus.annotations", "corpus.document_table"},
    "model": {"config", "kernels"},
    "checkpoint": {"config", "progress"},
    "synthesis": {"config", "progress", "journal", "command_line", "sandbox", "corpus"},
    "reporting": {"config", "progress", "data", "corpus.statistics"},
    "evaluation": {
        "config", "progress", "journal", "command_line", "sandbox", "runtime", "model", "checkpoint", "training",
        "corpus.tokenizers",
    },
    "training": {"config", "progress", "runtime", "corpus", "data", "kernels", "model", "checkpoint"},
}
# Part of the package → libraries it must not import.
FORBIDDEN_LIBRARIES: dict[str, set[str]] = {
    "config": {"torch", "numpy", "megatron", "transformers"},
    "progress": {"torch", "numpy", "megatron", "transformers"},
    "sandbox": {"torch", "numpy", "megatron", "transformers"},
    "data": {"torch", "megatron", "transformers"},
    "kernels": {"megatron", "transformers"},
    "corpus": {"megatron"},
    "synthesis": {"torch", "megatron"},
    "reporting": {"torch", "megatron", "transformers"},
}
# Only these ask which device they are on.
KNOW_DEVICES = {"runtime", "kernels"}
TOP_LEVEL = {"pretrain_llama3_synE", "tools", "tests", "benchmarks"}


def imported_modules(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Dotted names that the source of `module` imports, also inside functions and under `if TYPE_CHECKING`.

    `from a.b import c` yields `a.b.c`: c may be a module. Relative imports are made absolute.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Imports of a module of the package that the plan does not allow."""
    part = module.split(".")[1] if "." in module else ""
    found = []
    for name in imported_modules(source, module, is_package=is_package):
        top, _, rest = name.partition(".")
        if top == PACKAGE and rest != "__version__" and part in ALLOWED:
            own = rest.partition(".")[0] == part
            allowed = any(rest == entry or rest.startswith(entry + ".") for entry in ALLOWED[part])
            if not own and not allowed:
                found.append(f"{module} imports {name}: {part} may import {sorted(ALLOWED[part]) or 'nothing of ours'}")
        if top in FORBIDDEN_LIBRARIES.get(part, set()):
            found.append(f"{module} imports {name}: {part} works without {top}")
        if name.startswith("megatron.training"):
            found.append(f"{module} imports {name}: it is not in the megatron-core package")
        if top in TOP_LEVEL:
            found.append(f"{module} imports {name}: nobody imports the entry, the tools or the tests")
    return found


def device_questions(source: str, module: str) -> list[str]:
    """Expressions that ask whether there is a GPU, or where a tensor lies. A device that is handed in is known."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        about_cuda = owner == "torch.cuda" and node.attr.startswith(("is_available", "device_count", "get_device"))
        about_tensor = node.attr in {"is_cuda", "is_cpu"} or (node.attr == "type" and owner.endswith(".device"))
        if about_cuda or about_tensor:
            asked = ast.unparse(node)
            found.append(f"{module}:{node.lineno} asks {asked}: only {' and '.join(sorted(KNOW_DEVICES))} know devices")
    return found


def package_modules() -> list[tuple[str, Path]]:
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in paths]


@pytest.mark.parametrize("module, path", package_modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_package_keeps_the_import_rules(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, is_package=path.name == "__init__.py") == []
    part = module.split(".")[1] if "." in module else ""
    if part not in KNOW_DEVICES:
        assert device_questions(source, module) == []


def test_every_part_of_the_package_has_a_rule() -> None:
    parts = {module.split(".")[1] for module, _ in package_modules() if "." in module}
    assert parts == set(ALLOWED)


@pytest.mark.parametrize("folder", ["tools", "benchmarks", "."])
def test_scripts_import_the_package_and_not_megatron_training(folder: str) -> None:
    for path in sorted((ROOT / folder).glob("*.py")):
        names = list(imported_modules(path.read_text(encoding="utf-8"), path.stem))
        bad = [name for name in names if name.startswith("megatron.training") or name.split(".")[0] == "tests"]
        assert bad == [], f"{path} imports {bad}"


@pytest.mark.parametrize(
    "module, source",
    [
        ("megatron_synE.config.model", "from megatron_synE.model import llama"),
        ("megatron_synE.config.model", "import torch"),
        ("megatron_synE.data.stream", "import torch.distributed"),
        ("megatron_synE.data.stream", "from megatron_synE.corpus.tokenizers import build_tokenizer"),
        ("megatron_synE.data.stream", "def f():\n    from ..runtime import initialize"),
        ("megatron_synE.data.strategies.static", "from ...training import loop"),
        ("megatron_synE.kernels.ops", "from megatron_synE import config"),
        ("megatron_synE.kernels.ops", "import megatron.core"),
        ("megatron_synE.checkpoint.sharded", "from megatron_synE.model.build import build_model_chunks"),
        ("megatron_synE.training.loop", "from megatron.training import get_args"),
        ("megatron_synE.training.loop", "import megatron.training.arguments as a"),
        ("megatron_synE.training.loop", "from tools.preprocess_data import main"),
        ("megatron_synE.model.build", "import megatron_synE.training.step"),
    ],
)
def test_the_rules_find_what_breaks_them(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("megatron_synE.data.stream", "from megatron_synE.corpus.indexed import IndexedCorpus\nimport numpy"),
        ("megatron_synE.data.stream", "from megatron_synE import _index\nfrom . import mixture"),
        ("megatron_synE.training.loop", "from megatron_synE.checkpoint import save_checkpoint\nimport megatron.core"),
    ],
)
def test_the_rules_let_pass_what_keeps_them(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize("question", ["torch.cuda.is_available()", "hidden_SBH.is_cuda", "weight.device.type == 'cpu'"])
def test_a_question_about_the_device_is_found(question: str) -> None:
    assert len(device_questions(f"if {question}:\n    pass", "megatron_synE.model.norm")) == 1

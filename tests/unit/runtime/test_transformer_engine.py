"""Whether Transformer Engine can be used: each bad installation has one reason, and hides itself from megatron-core."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from megatron_synE.runtime.transformer_engine import ACCEPTED_VERSIONS, UNKNOWN_VERSION, is_accepted
from tests.helpers import fake_packages

ROOT = Path(__file__).parents[3]
ASK = """
import sys, torch
torch.cuda.is_available = lambda: sys.argv[1] == "gpu"
from megatron_synE.runtime.transformer_engine import hide_unusable_transformer_engine, transformer_engine_problem
print(transformer_engine_problem())
print(hide_unusable_transformer_engine())
try:
    import transformer_engine.pytorch.optimizers
    print("visible")
except ImportError:
    print("hidden")
"""


def ask(folder: Path, machine: str) -> list[str]:
    """The problem, what is told of it, and whether an import finds the package."""
    environment = {**os.environ, "PYTHONPATH": fake_packages.path_with(folder)}
    command = [sys.executable, "-c", ASK, machine]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return result.stdout.splitlines()


def test_a_good_installation_on_a_gpu_is_used(tmp_path: Path) -> None:
    assert ask(fake_packages.transformer_engine(tmp_path), "gpu") == ["None", "None", "visible"]


def test_a_broken_one_is_told_with_its_reason_and_hidden(tmp_path: Path) -> None:
    problem, told, import_finds = ask(fake_packages.transformer_engine(tmp_path, fake_packages.NO_LIBRARY), "gpu")
    assert "2.11.0 is installed, but cannot be imported (OSError: libcudnn.so.9: cannot open" in problem
    assert "pip install" in problem
    assert told == problem and import_finds == "hidden"


def test_one_out_of_range_is_told_and_hidden(tmp_path: Path) -> None:
    problem, told, import_finds = ask(fake_packages.transformer_engine(tmp_path, version="2.20.2"), "gpu")
    assert problem.startswith("Transformer Engine 2.20.2 is installed, but megatron-core takes >=2.9,<2.12; run `pip")
    assert told == problem and import_finds == "hidden"


def test_without_a_gpu_it_is_hidden_without_a_word_and_not_even_imported(tmp_path: Path) -> None:
    problem, told, import_finds = ask(fake_packages.transformer_engine(tmp_path, fake_packages.NO_DRIVER), "no gpu")
    assert problem == "Transformer Engine 2.11.0 needs an NVIDIA GPU, and torch sees none"
    assert told == "None" and import_finds == "hidden"


def test_a_build_of_nvidias_is_judged_by_its_version() -> None:
    assert is_accepted("2.10.0+769ed778") and is_accepted("2.11.0")
    for version in ("2.8.0", "2.12.0", "2.12.0.dev0+769ed778", UNKNOWN_VERSION):
        assert not is_accepted(version), version


def extra_of_setup() -> Requirement:
    """setup.py's extra `te`, read without running it."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (extras,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS"
    )
    (requirement,) = ast.literal_eval(extras)["te"]
    return Requirement(requirement)


def accepted_by_megatron_core() -> SpecifierSet:
    """What megatron-core's own extras ask for."""
    requirements = map(Requirement, importlib.metadata.requires("megatron-core") or [])
    (found,) = {r.specifier for r in requirements if r.name.replace("_", "-") == "transformer-engine"}
    return found


def test_the_extra_and_the_check_accept_what_megatron_core_accepts() -> None:
    extra = extra_of_setup()
    assert extra.extras == {"pytorch"}
    minors = [f"{major}.{minor}" for major in (1, 2, 3) for minor in range(30)]
    versions = [f"{minor}{patch}" for minor in minors for patch in ("", ".0", ".1", ".9")]

    def accepted(specifiers: SpecifierSet) -> list[str]:
        return list(specifiers.filter(versions))

    assert accepted(SpecifierSet(ACCEPTED_VERSIONS)) == accepted(accepted_by_megatron_core())
    assert extra.specifier == SpecifierSet(ACCEPTED_VERSIONS)

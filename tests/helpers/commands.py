"""The project's command lines, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples" / "data"
TIMEOUT_S = 240


def run_tool(name: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python tools/{name}.py …`; the caller looks at status and output."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd, env=environment())


def torchrun(num_processes: int, *arguments: str | Path) -> list[str]:
    """The command that trains with so many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return [*launcher, str(ROOT / "pretrain_llama3_synE.py"), *map(str, arguments)]


def pretrain(num_processes: int, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Train to the end, or to the error."""
    command = torchrun(num_processes, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd, env=environment())


def run(
    *command: str | Path, cwd: Path | None = None, timeout_s: int = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Any command, to its end."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout_s, cwd=cwd, env=environment(),
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def succeeded(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The result, after checking that the command ended well."""
    assert result.returncode == 0, f"{result.args} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def environment() -> dict[str, str]:
    """One thread a process: several share two cores. `python` and `torchrun` in a script are those of the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PATH": path}


def tokenised_sample(folder: Path, *sources: str) -> dict[str, Path]:
    """Corpora of the shipped sample: source → prefix."""
    prefixes = {}
    for source in sources:
        done = run_tool(
            "preprocess_data", "--input", SAMPLE / f"{source}.jsonl", "--output-prefix", folder / source,
            "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", SAMPLE / "tokenizer", "--append-eod",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        prefixes[source] = folder / f"{source}_text_document"
    return prefixes

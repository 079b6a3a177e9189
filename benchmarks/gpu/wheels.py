"""Packages carried to a machine without a network.

    python benchmarks/gpu/wheels.py FOLDER [--python-version 3.12]     on a machine with one

collects what `make gpu` needs beside Python, torch for CUDA and nvcc, pinned by constraints.txt, and says what is left
out. `make gpu WHEELS=FOLDER` unpacks it: no pip is needed there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LARGEST_MIB = 64
# megatron-core asks for torch, which is there; everything else comes with what it asks for.
ALONE = ("megatron-core",)
WITH_DEPENDENCIES = (
    "transformers", "tokenizers", "safetensors", "jsonargparse[signatures]", "pyyaml", "rich", "xxhash", "orjson",
    "psutil", "setuptools", "wheel", "pybind11", "pytest", "pytest-timeout", "hypothesis",
)  # fmt: skip
LEFT_OUT = {
    "gigatoken": "tokenizers is used instead",
    "tiktoken, sentencepiece, nltk, scipy, pyarrow, zstandard": "for other corpora",
    "tensorboard": "the runs write metrics.jsonl",
    "transformer-engine": "too large; put its wheels into the folder yourself, and the stage `te` runs",
}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def collect(folder: Path, python_version: str) -> None:
    """Download the wheels for x86-64 Linux and this Python."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    pip += ["--constraint", str(ROOT / "constraints.txt"), "--python-version", python_version]
    pip += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([*pip, "--no-deps", *ALONE], check=True)
    subprocess.run([*pip, *WITH_DEPENDENCIES], check=True)


def unpack(folder: Path, target: Path) -> None:
    """Make `target` a folder for PYTHONPATH that holds the packages of all wheels in `folder`.

    Raises:
        ValueError: there is no wheel for this Python in the folder.
    """
    wheels = sorted(folder.glob("*.whl"))
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if not any(f"-{tag}-" in wheel.name for wheel in wheels):
        raise ValueError(
            f"{folder}: holds no wheel for {tag}; run `python benchmarks/gpu/wheels.py {folder} --python-version "
            f"{sys.version_info.major}.{sys.version_info.minor}` on a machine with a network"
        )
    shutil.rmtree(target, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    for data in target.glob("*.data"):  # a wheel's way to say that files belong elsewhere; libraries belong here
        for kind in ("purelib", "platlib"):
            if (data / kind).is_dir():
                shutil.copytree(data / kind, target, dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.12")
    args = parser.parse_args()
    collect(args.folder, args.python_version)
    wheels = sorted(args.folder.glob("*.whl"))
    total_mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{args.folder}: {len(wheels)} wheels, {total_mib:.1f} MiB, for Python {args.python_version}")
    for package, instead in LEFT_OUT.items():
        print(f"left out: {package} ({instead})")
    if total_mib > LARGEST_MIB:
        print(f"more than {LARGEST_MIB} MiB: too much to be carried")
    return int(total_mib > LARGEST_MIB)


if __name__ == "__main__":
    sys.exit(main())

"""Everything that a GPU can show, in stages with a time limit each, and a table of what holds: `make gpu`.

    python benchmarks/gpu_all.py [--stages NAME ...] [--results DIR] [--wheels DIR]     on a machine with a GPU
    python benchmarks/gpu_all.py --rehearse                                             tiny, on a CPU
    python benchmarks/gpu_all.py --summary DIR                                          the table alone

Needs Python 3.11 or 3.12, torch for CUDA and nvcc; without a network the other packages come from `--wheels`
(gpu/wheels.py collects them). Each stage writes NAME.json and NAME.log into benchmarks/results/gpu-CARD at once, and
what another call has left there counts in the table. Exit status 0 when every stage that can run here passed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu.runner import read_records, run_stages
from gpu.stages import gpu_stages, rehearsal_stages
from gpu.summary import table
from gpu.wheels import unpack

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ROOT / "runs" / "gpu-packages"


def describe_machine(commit: str | None) -> dict[str, Any]:
    """What every record says of where it comes from.

    Raises:
        ValueError: torch is missing, or sees no GPU.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"{sys.executable} has no torch; give make gpu PYTHON=… one with torch for CUDA") from None
    if not torch.cuda.is_available():
        raise ValueError("no GPU: torch sees none on this machine (`--rehearse` plays the stages on the CPU)")
    properties = torch.cuda.get_device_properties(0)
    return {
        "machine": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **_provenance(commit),
    }


def _provenance(commit: str | None) -> dict[str, Any]:
    if commit is None:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(git, capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or "unknown"
    return {"commit": commit, "python": platform.python_version(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}


def environment() -> dict[str, str]:
    """For the stages: our package from this folder, and what was carried before what is installed."""
    path = [str(ROOT), *([str(CARRIED)] if CARRIED.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="these only; by default all")
    parser.add_argument("--results", type=Path, help="by default benchmarks/results/gpu-CARD")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use")
    parser.add_argument("--commit", help="what the records name where this is no git checkout")
    parser.add_argument("--rehearse", action="store_true", help="play the stages on the CPU, at sizes of no meaning")
    parser.add_argument("--summary", type=Path, metavar="DIR", help="print the table of these results and end")
    args = parser.parse_args()
    if args.summary is not None:
        print("\n".join(table(read_records(args.summary))))
        return 0
    stages = rehearsal_stages() if args.rehearse else gpu_stages()
    unknown = set(args.stages or ()) - {stage.name for stage in stages}
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stage.name for stage in stages)}")
    try:
        about = {"machine": "rehearsal", **_provenance(args.commit)} if args.rehearse else describe_machine(args.commit)
        if args.wheels is not None:
            unpack(args.wheels, CARRIED)
    except ValueError as error:
        print(error)
        return 1
    card = re.sub(r"[^a-z0-9]+", "-", about["machine"].lower()).strip("-")
    folder = ROOT / "runs" / "gpu-rehearsal" if args.rehearse else ROOT / "benchmarks" / "results" / f"gpu-{card}"
    results = args.results or folder
    wanted = [stage for stage in stages if args.stages is None or stage.name in args.stages]
    records = run_stages(wanted, results, about=about, environment=environment(), cwd=ROOT)
    lines = table(read_records(results))
    (results / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines) + f"\n\nin {results}")
    return int(any(record["status"] not in ("passed", "skipped") for record in records.values()))


if __name__ == "__main__":
    sys.exit(main())

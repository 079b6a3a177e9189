"""Builds the extensions in place, the CUDA half for this machine's card alone, and loads them.

    python benchmarks/gpu/build.py [--device cuda]

Fails where a compiler or nvcc did: the installation itself would go on without. `--device cpu` leaves out nvcc.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    environment = {"SYNE_BUILD_CUDA": "0"}
    if args.device == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability()
        environment = {"SYNE_CUDA_ARCHS": f"{major}{minor}"}
    start = time.monotonic()
    command = [sys.executable, str(ROOT / "setup.py"), "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)
    seconds = time.monotonic() - start
    modules = ["_index", "_kernels_cpu", *(["_kernels_cuda"] if args.device == "cuda" else [])]
    sys.path.insert(0, str(ROOT))
    for module in modules:
        importlib.import_module(f"megatron_synE.{module}")
    print(json.dumps({"seconds": round(seconds, 1), "built": modules, **environment}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

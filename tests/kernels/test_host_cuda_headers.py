"""What stands in for CUDA's conversions to 8 bit gives the codes of CUDA's own header on the host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels.host_cuda.build import HERE

pytestmark = [
    pytest.mark.requires_nvcc,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler on this machine"),
]
# Every bf16 number and its neighbours in fp32, in both formats.
SOURCE = """
#include <cuda_fp8.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

int main() {
  for (std::uint32_t high = 0; high < 65536; ++high)
    for (int offset = -1; offset <= 1; ++offset)
      for (auto format : {__NV_E4M3, __NV_E5M2}) {
        std::uint32_t bits = (high << 16) + offset;
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        std::putchar(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, format));
      }
}
"""


def codes(compiler: list[str], source: Path, program: Path) -> bytes:
    subprocess.run([*compiler, "-std=c++17", "-O2", str(source), "-o", str(program)], check=True, capture_output=True)
    return subprocess.run([str(program)], check=True, capture_output=True).stdout


def test_eight_bit_numbers(tmp_path: Path) -> None:
    source = tmp_path / "codes.cpp"
    source.write_text(SOURCE)
    found = codes(["g++", f"-I{HERE / 'include'}"], source, tmp_path / "stand_in")
    assert len(found) == 65536 * 3 * 2
    assert found == codes(["nvcc"], source, tmp_path / "real")

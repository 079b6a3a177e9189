"""What an evaluation is asked to do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_synE.config.parallel import ParallelConfig

ENGINE, TRANSFORMERS = "engine", "hf"


@dataclass(frozen=True)
class EvaluationOptions:
    """The command line of tools/evaluate.py."""

    tasks: tuple[str, ...]
    data_dir: Path
    output_dir: Path
    checkpoint: Path | None = None
    """A step's folder or a run's; either this or `hf_dir`."""
    hf_dir: Path | None = None
    tokenizer_model: Path | None = None
    """None: beside the model."""
    tokenizer_type: str = "auto"
    add_bos: str = "auto"
    limit: int | None = None
    """Items of each task, of each subject of a group; None for all."""
    num_fewshot: int | None = None
    """Examples in each prompt; None for the paper's."""
    seed: int = 1234
    dtype: Literal["bf16", "fp32"] = "bf16"
    tokens_per_batch: int = 4096
    max_length_tokens: int | None = None
    """Of the model's context; None for all of it."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    transformer_impl: Literal["fused", "local", "transformer_engine"] = "fused"
    generate_with: str = ENGINE
    """engine, hf (transformers), or the URL of an OpenAI-compatible server."""
    export_dir: Path | None = None
    """The checkpoint's Hugging Face export, for `generate_with` hf."""
    endpoint_model: str | None = None
    endpoint_key_variable: str | None = None
    run_code: bool = False
    against: Path | None = None
    command: tuple[str, ...] = ()

    def problems(self, world_size: int = 1) -> list[str]:
        """Contradictions, without looking at a file.

        Args:
            world_size: processes that were started.
        """
        found = []
        if (self.checkpoint is None) == (self.hf_dir is None):
            found.append("give either --checkpoint or --hf-dir")
        if self.limit is not None and self.limit < 1:
            found.append(f"--limit {self.limit}: give 1 or more")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            found.append(f"--num-fewshot {self.num_fewshot}: give 0 or more")
        if self.tokens_per_batch < 1:
            found.append(f"--tokens-per-batch {self.tokens_per_batch}: give 1 or more")
        if self.max_length_tokens is not None and self.max_length_tokens < 2:
            found.append(f"--max-length {self.max_length_tokens}: give 2 or more")
        is_url = self.generate_with.startswith(("http://", "https://"))
        if self.generate_with not in (ENGINE, TRANSFORMERS) and not is_url:
            found.append(f"--generate-with {self.generate_with}: give engine, hf, or the URL of a server up to /v1")
        if self.generate_with == TRANSFORMERS and self.generating_folder is None:
            found.append("--generate-with hf: give --export-dir, what tools/convert_checkpoint.py export wrote")
        if self.export_dir is not None and self.generate_with != TRANSFORMERS:
            found.append("--export-dir: it is for --generate-with hf; add that, or leave it out")
        for name in ("endpoint_model", "endpoint_key_variable"):
            if getattr(self, name) is not None and not is_url:
                found.append(f"--{name.replace('_', '-')}: it is for --generate-with URL; give that, or leave it out")
        if self.against is not None and self.against.resolve() == self.output_dir.resolve():
            found.append("--against: is the --output-dir itself; give the folder of another evaluation")
        return found + [
            re.sub(r"parallel\.(\w+)", lambda field: f"--{field[1].replace('_', '-')}", problem)
            for problem in self.parallel.problems() or self.parallel.problems_with_world(world_size)
        ]

    @property
    def generating_folder(self) -> Path | None:
        """What transformers continues prompts with, where it does."""
        return self.export_dir if self.checkpoint is not None else self.hf_dir

    def settings(self) -> dict[str, Any]:
        """What determines the results beside model, tokenizer and tasks' content."""
        names = ("limit", "num_fewshot", "seed", "run_code")
        return {"tasks": list(self.tasks)} | {name: getattr(self, name) for name in names}

"""Benchmarks of a model, from local files: a training checkpoint where it lies, or a Hugging Face folder.

    python tools/evaluate.py --checkpoint C --tokenizer-model T --tasks mmlu ceval --data-dir D --output-dir O
    torchrun --nproc-per-node 4 tools/evaluate.py --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 …

Results and samples have lm-evaluation-harness's format. Which file of D each task reads says the table in
megatron_synE/evaluation/tasks/README.md; nothing comes from the network. A command that was killed goes on where it
was, when given again. --against compares item by item with another evaluation.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, get_type_hints

from megatron_synE.command_line import ToolParser, quiet_megatron, run_tool

SECONDS_FOR_THE_FIRST_PROCESS = 30.0  # which reads the data before it comes to the model
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
LAYOUT = {
    "tensor_model_parallel_size": "processes that share each layer",
    "pipeline_model_parallel_size": "processes that share the stack of layers",
    "virtual_pipeline_model_parallel_size": "model chunks per pipeline process; one by default",
    "context_parallel_size": "processes that share each sequence",
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    model = parser.add_argument_group("what is evaluated")
    model.add_argument("--checkpoint", type=Path, help="training checkpoint: a run's folder, or a step's in it")
    model.add_argument("--hf-dir", type=Path, help="Hugging Face folder; safetensors only, and no code of its own")
    model.add_argument("--tokenizer-model", type=Path, help="folder, tokenizer.json or tokenizer.model; "
                       "by default what lies beside the model")  # fmt: skip
    model.add_argument("--tokenizer-type", choices=("auto", "HuggingFaceTokenizer", "TikTokenizer",
                       "SentencePieceTokenizer"), default="auto", help="format of the tokenizer")  # fmt: skip
    model.add_argument("--add-bos", choices=("auto", "yes", "no"), default="auto", help="one begin-of-text before "
                       "every request; auto: but where the tokenizer's files decline it")  # fmt: skip
    tasks = parser.add_argument_group("on what")
    tasks.add_argument("--tasks", nargs="+", required=True, help="mmlu, gsm8k …; a subject as mmlu_anatomy; or all")
    tasks.add_argument("--data-dir", type=Path, required=True, help="folder of the benchmarks' files")
    tasks.add_argument("--limit", type=int, help="only so many items of each task, and of each subject of a group")
    tasks.add_argument("--num-fewshot", type=int, help="examples in each prompt; by default as the paper has them")
    tasks.add_argument("--run-code", action="store_true",
                       help="run the programs that the model writes (humaneval, mbpp), in a sandbox")  # fmt: skip
    tasks.add_argument("--seed", type=int, default=1234, help="of random numbers that tasks may use")
    results = parser.add_argument_group("results")
    results.add_argument("--output-dir", type=Path, required=True, help="folder of results, one per evaluation")
    results.add_argument("--against", type=Path, metavar="DIR", help="finished evaluation to compare with")
    add_engine_options(parser.add_argument_group("how"))
    return parser.parse_args(argv)


def add_engine_options(group: Any) -> None:
    """How the model is loaded and asked."""
    group.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="format of weights and activations")
    group.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: a GPU where it is")
    group.add_argument("--tokens-per-batch", type=int, default=4096, help="most tokens of a batch, with its padding")
    group.add_argument("--max-length", type=int, metavar="TOKENS", help="what the model reads at most; "
                       "by default its context")  # fmt: skip
    group.add_argument("--transformer-impl", choices=("fused", "local", "transformer_engine"), default="fused",
                       help="layers of a Llama")  # fmt: skip
    for name, text in LAYOUT.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=int, help=text,
                           default=None if name.startswith("virtual") else 1)  # fmt: skip
    group.add_argument("--sequence-parallel", action="store_true", help="split norms along the sequence as well")
    group.add_argument("--generate-with", default="engine", metavar="ENGINE", help="who continues prompts: engine, hf "
                       "(transformers) or the URL of an OpenAI-compatible server, up to /v1")  # fmt: skip
    group.add_argument("--export-dir", type=Path, help="the checkpoint's Hugging Face export, for --generate-with hf")
    group.add_argument("--endpoint-model", help="its name at the server; by default the only one there")
    group.add_argument("--endpoint-key-variable", metavar="NAME", help="variable of the environment with the key")


def main(argv: list[str] | None = None) -> int:
    """0, or 1 after one message about what is wrong."""
    return run_tool("evaluate", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Evaluate; under torchrun the message of the first process is the only one."""
    try:
        _run(arguments)
    except ValueError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(SECONDS_FOR_THE_FIRST_PROCESS)  # all find the same; torchrun ends this one meanwhile
        raise


def _run(arguments: argparse.Namespace) -> None:
    os.environ.update(OFFLINE)  # before the imports that read it
    quiet_megatron()
    from megatron_synE.config.parallel import ParallelConfig
    from megatron_synE.runtime.process_groups import set_cuda_environment
    from megatron_synE.runtime.transformer_engine import hide_unusable_transformer_engine

    layout = {name: getattr(arguments, name) for name in (*LAYOUT, "sequence_parallel", "device")}
    parallel = ParallelConfig(**layout)
    set_cuda_environment(parallel)  # before the imports of megatron-core, which ask for a GPU
    hide_unusable_transformer_engine()
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'megatron-syne[eval]'") from None
    from megatron_synE.evaluation.options import EvaluationOptions
    from megatron_synE.evaluation.run import evaluate

    names = get_type_hints(EvaluationOptions)
    given = {name: value for name, value in vars(arguments).items() if name in names}
    options = EvaluationOptions(
        **{**given, "tasks": tuple(arguments.tasks)}, parallel=parallel, max_length_tokens=arguments.max_length,
        command=tuple(sys.argv),
    )  # fmt: skip
    evaluate(options, say=lambda text: print(text, flush=True), on_lost=end_at_once)


def end_at_once(reason: str) -> None:
    """End this process from any thread, before it writes anything more."""
    print(f"evaluate: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

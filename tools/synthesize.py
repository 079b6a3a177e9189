"""Questions and answers from one's own pages, by any OpenAI-compatible server.

run      cut snippets, once, then ask about each; the same command goes on after a stop, and several processes (Slurm
         array tasks, say) may run it on one job at a time
status   what has become of every snippet, and what that has cost
export   write the accepted documents as JSON lines for tools/preprocess_data.py, or topic labels for
         tools/train_topic_classifier.py; as often as one likes, also while a job runs

    python tools/synthesize.py run --config job.yaml
    python tools/synthesize.py export --config job.yaml --output synthesis_en.jsonl.zst --benchmark gsm8k.jsonl
"""

import argparse
import json
import logging
import os
import signal
import sys
from types import FrameType

from megatron_synE.command_line import ToolParser, output_file, run_tool
from megatron_synE.config.parse import config_parser, parse_config
from megatron_synE.config.synthesis import SynthesisConfig
from megatron_synE.corpus.decontaminate import BenchmarkNgrams
from megatron_synE.corpus.export import check_suffix, compressed
from megatron_synE.sandbox.run_code import CodeLimits
from megatron_synE.synthesis.corrupt import METHODS
from megatron_synE.synthesis.engine import Engine
from megatron_synE.synthesis.export import ExportOptions, ExportReport, export_documents, export_labels
from megatron_synE.synthesis.folder import JobFolder
from megatron_synE.synthesis.labels import LabelReport
from megatron_synE.synthesis.prompts import load_prompts
from megatron_synE.synthesis.run import run_job
from megatron_synE.synthesis.snippets import prepare_snippets
from megatron_synE.synthesis.status import job_status
from megatron_synE.synthesis.tasks import PromptTasks

USAGE = """synthesize.py run [--redo] --config FILE [--section.field value ...]
       synthesize.py status [--json] --config FILE [--section.field value ...]
       synthesize.py export --output FILE [--benchmark FILE ...] [--run-code] [--corrupt-share SHARE] --config FILE"""


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command with its own options, and what describes the job."""
    parser = ToolParser(
        __doc__, usage=USAGE,
        epilog="synthesize.py run --help lists every field of a job.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", add_help=False, allow_abbrev=False)
    run.add_argument("--redo", action="store_true", help="make rows of another model or other sampling anew")
    status = commands.add_parser("status", add_help=False, allow_abbrev=False)
    status.add_argument("--json", action="store_true", help="one JSON object")
    usage = "synthesize.py export --output FILE [options below] --config FILE [--section.field value ...]"
    add_export_options(commands.add_parser("export", allow_abbrev=False, usage=usage))
    return parser.parse_known_args(argv)


def add_export_options(parser: ToolParser) -> None:
    """What is written, and what is left out."""
    parser.add_argument("--output", required=True, metavar="FILE", help=".jsonl, .jsonl.gz or .jsonl.zst")
    parser.add_argument("--labels", action="store_true", help="write topic labels, not documents")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there (default: refuse)")
    parser.add_argument("--benchmark", nargs="+", metavar="FILE", help="leave out documents with pieces of these")
    parser.add_argument(
        "--near-duplicates", type=float, default=ExportOptions.near_duplicate_share, metavar="SHARE",
        help="leave out documents as similar as this to an earlier one; above 1 none",
    )  # fmt: skip
    parser.add_argument(
        "--run-code", action="store_true",
        help="run programs in a sandbox, and leave out those that fail their own examples (default: nothing is run)",
    )  # fmt: skip
    parser.add_argument("--run-code-seconds", type=int, default=CodeLimits.seconds, help="of computing, for a program")
    parser.add_argument("--corrupt-share", type=float, default=0.0, help="make so many of the answers wrong")
    parser.add_argument("--corrupt-methods", nargs="+", choices=METHODS, default=list(METHODS), help="in which ways")
    parser.add_argument("--corrupt-seed", type=int, default=0, help="of what is made wrong")
    parser.add_argument("--report", metavar="FILE", help="write the counts as JSON, too")


def stop_on_signals(engine: Engine, received: list[int]) -> None:
    """The first signal, which is put into the list, lets what is in flight come back; the second ends at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        name = signal.Signals(number).name
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, lambda number, frame: os._exit(128 + number))
        print(f"{name}: waiting for the answers in flight; again to leave at once", file=sys.stderr, flush=True)
        engine.stop(f"stopped by {name}")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop)


def run(config: SynthesisConfig, redo: bool) -> int:
    """Take part in the job; returns the exit status: 0 also where a budget ended it, not where a signal did."""
    signals: list[int] = []
    prompts = load_prompts(config.prompts)
    folder = JobFolder(config.job)
    prepare_snippets(config.snippets, prompts, folder)
    tasks = PromptTasks(prompts, config.answers)
    ending = run_job(config, tasks, redo=redo, on_start=lambda engine: stop_on_signals(engine, signals))
    print(job_status(folder, config.prices).text())
    if not ending.is_complete:
        print(f"{ending.reason}; the same command goes on")
    return 128 + signals[0] if signals else 0


def export(config: SynthesisConfig, arguments: argparse.Namespace) -> None:
    """Write documents or labels, and say what became of the others."""
    check_suffix(arguments.output)
    folder = JobFolder(config.job)
    options = ExportOptions(
        benchmarks=BenchmarkNgrams(arguments.benchmark) if arguments.benchmark else None,
        near_duplicate_share=arguments.near_duplicates,
        run_code=CodeLimits(seconds=arguments.run_code_seconds) if arguments.run_code else None,
        corrupt_share=arguments.corrupt_share,
        corrupt_methods=arguments.corrupt_methods,
        corrupt_seed=arguments.corrupt_seed,
    )
    name = arguments.output
    with output_file(name, overwrite=arguments.overwrite) as file, compressed(file, name) as out:
        report: ExportReport | LabelReport
        report = export_labels(folder, out.write) if arguments.labels else export_documents(folder, options, out.write)
    if arguments.report:
        with output_file(arguments.report) as file:
            file.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False).encode() + b"\n")
    print("\n".join([f"{name}:", *report.lines()]))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments, rest = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="synthesize: %(message)s", level=logging.WARNING)

    def body() -> int:
        config = parse_config(SynthesisConfig, rest, config_parser(SynthesisConfig, USAGE, __doc__))
        if problems := config.problems():
            raise ValueError("\n".join(problems))
        if arguments.command == "export":
            export(config, arguments)
        elif arguments.command == "status":
            status = job_status(JobFolder(config.job), config.prices)
            print(status.json() if arguments.json else status.text())
        else:
            return run(config, arguments.redo)
        return 0

    return run_tool("synthesize", body)


if __name__ == "__main__":
    sys.exit(main())

"""Questions and answers from one's own pages, by any OpenAI-compatible server.

run      cut snippets, once, then ask about each; the same command goes on after a stop, and several processes (Slurm
         array tasks, say) may run it on one job at a time
status   what has become of every snippet, and what that has cost

    python tools/synthesize.py run --config job.yaml
"""

import argparse
import logging
import os
import signal
import sys
from types import FrameType

from megatron_synE.command_line import run_tool
from megatron_synE.config.parse import config_parser, parse_config
from megatron_synE.config.synthesis import SynthesisConfig
from megatron_synE.synthesis.engine import Engine
from megatron_synE.synthesis.folder import JobFolder
from megatron_synE.synthesis.prompts import load_prompts
from megatron_synE.synthesis.run import run_job
from megatron_synE.synthesis.snippets import prepare_snippets
from megatron_synE.synthesis.status import job_status
from megatron_synE.synthesis.tasks import PromptTasks

USAGE = """synthesize.py run [--redo] --config FILE [--section.field value ...]
       synthesize.py status [--json] --config FILE [--section.field value ...]"""


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command with its own options, and what describes the job."""
    parser = argparse.ArgumentParser(
        usage=USAGE, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="synthesize.py run --help lists every field of a job.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", add_help=False, allow_abbrev=False)
    run.add_argument("--redo", action="store_true", help="make rows of another model or other sampling anew")
    status = commands.add_parser("status", add_help=False, allow_abbrev=False)
    status.add_argument("--json", action="store_true", help="one JSON object")
    return parser.parse_known_args(argv)


def stop_on_signals(engine: Engine) -> None:
    """The first signal lets what is in flight come back, the second ends at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, lambda number, frame: os._exit(128 + number))
        print(f"{name}: waiting for the answers in flight; again to leave at once", file=sys.stderr, flush=True)
        engine.stop(f"stopped by {name}")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop)


def run(config: SynthesisConfig, redo: bool) -> None:
    """Take part in the job."""
    prompts = load_prompts(config.prompts)
    folder = JobFolder(config.job)
    prepare_snippets(config.snippets, prompts, folder)
    ending = run_job(config, PromptTasks(prompts, config.answers), redo=redo, on_start=stop_on_signals)
    print(job_status(folder, config.prices).text())
    if not ending.is_complete:
        print(f"{ending.reason}; the same command goes on")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments, rest = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="synthesize: %(message)s", level=logging.WARNING)

    def body() -> None:
        config = parse_config(SynthesisConfig, rest, config_parser(SynthesisConfig, USAGE, __doc__))
        if problems := config.problems():
            raise ValueError("\n".join(problems))
        if arguments.command == "status":
            status = job_status(JobFolder(config.job), config.prices)
            print(status.json() if arguments.json else status.text())
        else:
            run(config, arguments.redo)

    return run_tool("synthesize", body)


if __name__ == "__main__":
    sys.exit(main())

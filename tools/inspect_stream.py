"""What a run reads: the plan before training, and the ledger of a checkpoint afterwards.

    inspect_stream.py --config FILE                                       the plan, stage by stage
    inspect_stream.py --config FILE --checkpoint DIR                      the same, as the run really went
    inspect_stream.py --config FILE --checkpoint DIR --steps 100:200      what these steps read
    inspect_stream.py … --steps 100:200 --documents FILE                  … and the documents, as JSON lines ("-": here)
    inspect_stream.py … --sample 4711                                     one sample: its documents, ids and text
    inspect_stream.py … --plot FILE                                       mixture, losses, perplexities (.png .pdf .svg)

Steps are [first, end), counted from 0. What the steps up to the checkpoint read, it says itself: the batch size may
have changed. Later steps are planned with the configuration's batch sizes. Documents have ids and urls where the corpus
was tokenised with --id-key and --keep-keys.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from megatron_synE.checkpoint import read_state
from megatron_synE.command_line import ToolParser, output_file, run_tool
from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job
from megatron_synE.data import DataStream, ledger, sample_read
from megatron_synE.data.ledger import DocumentTables, documents_as_json
from megatron_synE.data.ledger_table import ledger_table, stage_ranges
from megatron_synE.reporting.figures import check_suffix, save_figure
from megatron_synE.reporting.records import RunRecords, read_records
from megatron_synE.reporting.samples import sample_as_json, sample_text
from megatron_synE.reporting.stream_plot import stream_figure
from megatron_synE.training.checks import examine_plan
from megatron_synE.training.metrics import METRICS_FILE
from megatron_synE.training.trajectory import Trajectory


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over (`--section.field value`) overrides the config."""
    parser = ToolParser(__doc__)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--checkpoint", help="a checkpoint, or the folder of a run's checkpoints (then the latest)")
    origin.add_argument("--state", help="JSON file with a stream's state")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--steps", type=parse_range, help="FIRST:END in training steps")
    which.add_argument("--samples", type=parse_range, help="FIRST:END in global samples")
    parser.add_argument("--documents", metavar="FILE", help="write the exact documents of the range as JSON lines")
    parser.add_argument("--sample", type=int, action="append", default=[], metavar="K", help="show this global sample")
    parser.add_argument("--tokenizer-model", help="for --sample: where the corpus's tokenizer lies now, if it moved")
    parser.add_argument("--plot", metavar="FILE", help="draw the mixture, losses and perplexities (needs matplotlib)")
    parser.add_argument("--metrics", metavar="FILE", help=f"for --plot (default: the run's {METRICS_FILE})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments, overrides = parser.parse_known_args(argv)
    arguments.overrides = overrides
    return arguments


def parse_range(text: str) -> tuple[int, int]:
    """`10:20` → (10, 20)."""
    first, _, end = text.partition(":")
    if not (first.isdigit() and end.isdigit()) or int(first) >= int(end):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:END with FIRST < END, for instance 100:200")
    return int(first), int(end)


def open_stream(arguments: argparse.Namespace, job: JobConfig) -> tuple[DataStream, Trajectory]:
    """The stream and the way through it: of a checkpoint, of a stream's state, or as the configuration plans them.

    Raises:
        ValueError: the checkpoint holds no run, or does not fit the configuration or its corpora.
    """
    if arguments.checkpoint is not None:
        state = read_state(arguments.checkpoint)
        if "stream" not in state:
            raise ValueError(f"{arguments.checkpoint}: its state.json holds no data stream")
        stream = DataStream.build(job.data, state=state["stream"])
        return stream, Trajectory.resume(job.training, stream.num_samples, state)
    stream_state = None
    if arguments.state is not None:
        try:
            stream_state = dict(json.loads(Path(arguments.state).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{arguments.state}: cannot be read as JSON: {error}") from error
    else:
        found = examine_plan(job)
        if found.problems:
            raise ValueError("\n".join(found.problems))
        for note in found.notes:
            print(f"inspect_stream: note: {note}", file=sys.stderr)
    stream = DataStream.build(job.data, state=stream_state)
    return stream, Trajectory(job.training, stream.num_samples)


def ranges(arguments: argparse.Namespace, stream: DataStream, trajectory: Trajectory) -> list[tuple[str, int, int]]:
    """Title, first and end sample of each table to print."""
    if arguments.samples is not None:
        first, end = arguments.samples
        return [(f"samples {first} to {end}", first, end)]
    if arguments.steps is not None:
        first, end = arguments.steps
        parts = trajectory.samples_of_steps(first, end)
        if not parts:
            raise ValueError(f"--steps: the run has {trajectory.last_step} steps, none of them in {first}:{end}")
        return [(f"steps {first} to {end}", part.start, part.stop) for part in parts]
    return stage_ranges(stream)


def write_documents(stream: DataStream, stretches: Sequence[tuple[str, int, int]], file: BinaryIO) -> None:
    """JSON lines by component and epoch."""
    for _, first, end in stretches:
        for line in documents_as_json(stream, first, end):
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def show_samples(arguments: argparse.Namespace, stream: DataStream) -> None:
    """Single samples, decoded."""
    from megatron_synE.corpus.annotate import corpus_tokenizer

    tables, tokenizer = DocumentTables(stream), functools.cache(corpus_tokenizer)
    for number in arguments.sample:
        read = sample_read(stream, number)
        decode = tokenizer(read.prefix, arguments.tokenizer_model).decode
        if arguments.json:
            print(json.dumps(sample_as_json(read, tables, decode), ensure_ascii=False))
        else:
            print("\n".join(sample_text(read, tables, decode)), end="\n\n")


def plot(arguments: argparse.Namespace, job: JobConfig, stream: DataStream, trajectory: Trajectory) -> None:
    """The picture of the whole stream, or of the samples asked for."""
    samples = range(stream.num_samples)
    if arguments.samples is not None or arguments.steps is not None:
        stretches = ranges(arguments, stream, trajectory)
        samples = range(stretches[0][1], stretches[-1][2])
    records, folder = RunRecords(), job.logging.directory or job.checkpoint.save
    if arguments.metrics is not None:
        if not Path(arguments.metrics).is_file():
            raise ValueError(f"--metrics {arguments.metrics}: no such file")
        records = read_records(Path(arguments.metrics))
    elif arguments.checkpoint is not None and folder is not None:
        records = read_records(Path(folder) / METRICS_FILE)
    consumed = None if arguments.checkpoint is None else trajectory.consumed_samples
    figure = stream_figure(stream, records, samples, consumed)
    with output_file(arguments.plot) as file:
        save_figure(figure, file, arguments.plot)


def run(arguments: argparse.Namespace) -> None:
    """Print what was asked for. ValueError for every mistake of the user."""
    if arguments.plot is not None:
        check_suffix(arguments.plot)
    job = parse_job(["--config", arguments.config, *arguments.overrides])
    if problems := job.data.problems() + job.training.problems():
        raise ValueError("\n".join(problems))
    stream, trajectory = open_stream(arguments, job)
    if arguments.sample:
        show_samples(arguments, stream)
        return
    stretches = ranges(arguments, stream, trajectory)
    found = [(title, first, end, ledger(stream, first, end)) for title, first, end in stretches]
    if arguments.json:
        shown = [
            {"title": title, "first_sample": first, "end_sample": end, "ledger": [asdict(entry) for entry in entries]}
            for title, first, end, entries in found
        ]
        decisions = [asdict(decision) for decision in stream.decisions]
        print(json.dumps({"ranges": shown, "decisions": decisions}, indent=1, ensure_ascii=False))
    else:
        for title, first, end, entries in found:
            print(ledger_table(title, entries, first, end, stream.seq_length), end="\n\n")
        print("".join(f"{line}\n" for line in [*stream.describe_merges(), *stream.describe_moves()]), end="")
    if arguments.documents == "-":
        sys.stdout.flush()
        write_documents(stream, stretches, sys.stdout.buffer)
    elif arguments.documents is not None:
        with output_file(arguments.documents) as file:
            write_documents(stream, stretches, file)
    if arguments.plot is not None:
        plot(arguments, job, stream, trajectory)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one message."""
    return run_tool("inspect_stream", lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())

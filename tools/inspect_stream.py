"""What a run reads: the plan before training, and the ledger of a checkpoint afterwards.

    inspect_stream.py --config FILE                                       the plan, stage by stage
    inspect_stream.py --config FILE --checkpoint DIR                      the same, as the run really went
    inspect_stream.py --config FILE --checkpoint DIR --steps 100:200      what these steps read
    inspect_stream.py … --steps 100:200 --documents FILE                  … and the documents, as JSON lines ("-": here)
    inspect_stream.py … --plot FILE                                       shares over tokens, perplexity per topic (PNG)

Steps are [first, end), counted from 0. What the steps up to the checkpoint read, it says itself: the batch size may
have changed. Later steps are planned with the configuration's batch sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from megatron_synE.checkpoint import read_state
from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job
from megatron_synE.data import DataStream, ledger
from megatron_synE.data.ledger import documents_read
from megatron_synE.data.ledger_table import ledger_table, stage_ranges
from megatron_synE.training.checks import examine_plan
from megatron_synE.training.trajectory import Trajectory


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over (`--section.field value`) overrides the config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--checkpoint", help="a checkpoint, or the folder of a run's checkpoints (then the latest)")
    origin.add_argument("--state", help="JSON file with a stream's state")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--steps", type=parse_range, help="FIRST:END in training steps")
    which.add_argument("--samples", type=parse_range, help="FIRST:END in global samples")
    parser.add_argument("--documents", metavar="FILE", help="write the exact documents of the range as JSON lines")
    parser.add_argument("--plot", metavar="FILE", help="draw shares and perplexities (needs matplotlib)")
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
    elif problems := examine_plan(job).problems:
        raise ValueError("\n".join(problems))
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


def write_documents(stream: DataStream, first: int, end: int, file: TextIO) -> None:
    """One JSON line per component and epoch."""
    for read in documents_read(stream, first, end):
        line = {"component": read.component, "corpus": read.prefix, "epoch": read.epoch}
        file.write(json.dumps({**line, "documents": read.documents.tolist()}, ensure_ascii=False) + "\n")


def plot(stream: DataStream, path: str) -> None:
    """Shares of the components over tokens, and the held-out perplexity of each topic, as a PNG."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'megatron-syne[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 9), sharex=True, layout="constrained")
    edges = [segment.start * stream.seq_length for segment in stream.timeline.segments]
    edges.append(stream.num_samples * stream.seq_length)
    shares = [stream.shares(segment.start) for segment in stream.timeline.segments]
    bottom = [0.0] * len(shares)
    colours = [pyplot.get_cmap("tab20")(number % 20) for number in range(len(stream.component_names))]
    for name, colour in zip(stream.component_names, colours, strict=True):
        top = [low + share[name] for low, share in zip(bottom, shares, strict=True)]
        above.stairs(top, edges, baseline=bottom, fill=True, color=colour, label=name)
        bottom = top
    above.set(ylabel="share of tokens", ylim=(0, 1), title="Mixture")
    tokens = [decision.at_tokens for decision in stream.decisions]
    for name, colour in zip(stream.component_names, colours, strict=True):
        if "/" in name and stream.decisions:
            values = [decision.perplexity.get(name, float("nan")) for decision in stream.decisions]
            below.plot(tokens, values, marker=".", color=colour)
    below.set(xlabel="tokens", ylabel="held-out perplexity", title="Topics", xlim=(0, edges[-1]), yscale="log")
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)


def run(arguments: argparse.Namespace) -> None:
    """Print what was asked for. ValueError for every mistake of the user."""
    job = parse_job(["--config", arguments.config, *arguments.overrides])
    if problems := job.data.problems() + job.training.problems():
        raise ValueError("\n".join(problems))
    stream, trajectory = open_stream(arguments, job)
    found = []
    stretches = ranges(arguments, stream, trajectory)
    for title, first, end in stretches:
        entries = ledger(stream, first, end)
        if arguments.json:
            lines = [asdict(entry) for entry in entries]
            found.append({"title": title, "first_sample": first, "end_sample": end, "ledger": lines})
        else:
            print(ledger_table(title, entries, first, end, stream.seq_length), end="\n\n")
        if arguments.documents == "-":
            write_documents(stream, first, end, sys.stdout)
    if arguments.documents not in (None, "-"):
        with open(arguments.documents, "w", encoding="utf-8") as file:
            for _, first, end in stretches:
                write_documents(stream, first, end, file)
    if arguments.json:
        decisions = [asdict(decision) for decision in stream.decisions]
        print(json.dumps({"ranges": found, "decisions": decisions}, indent=1, ensure_ascii=False))
    if arguments.plot is not None:
        plot(stream, arguments.plot)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one message."""
    try:
        run(parse_arguments(argv))
    except ValueError as error:
        print(f"inspect_stream: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

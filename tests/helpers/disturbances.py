"""What happens to a run in one round: each function disturbs it, brings it to its end, and returns the verdict.

With the real torchrun are started: whatever concerns the agent (`kill_agent`, `signal_agent`, `signal_group`). All
others, and every second start, are forked from the warm interpreter of `tests.helpers.prefork`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.arena import Failed, Phase, Round, Skipped
from tests.helpers.launch import StartedRun
from tests.helpers.small_job import CORPORA, RUN, STEPS
from tests.helpers.verdicts import last_step, own_messages, unread_or_repeated

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
HANG_TIMEOUT_MINUTES = 0.15
HANG_LIMIT_SECONDS = 60 * HANG_TIMEOUT_MINUTES + 80
SECOND_START_SECONDS = 30.0
LAYOUT_TOLERANCE = 1e-5
TP = "--parallel.tensor_model_parallel_size"
PP = "--parallel.pipeline_model_parallel_size"
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "1 process": (1, ()),
    "TP2": (2, (TP, "2")),
    "TP2 with sequence parallel": (2, (TP, "2", "--parallel.sequence_parallel", "true")),
    "PP2": (2, (PP, "2")),
    "DP2 without distributed optimizer": (2, ("--parallel.use_distributed_optimizer", "false")),
    "DP4": (4, ()),
    "TP2 DP2": (4, (TP, "2")),
}


def kill_rank(play: Round) -> str:
    """SIGKILL of one process; the launcher ends the others."""
    play.prepare()
    run = play.start()
    play.wait_for_moment(run)
    send(signal.SIGKILL, victims=one_of(play, run))
    play.ended(run)
    play.finish()
    return play.compare()


def kill_all(play: Round) -> str:
    """SIGKILL of all processes at once."""
    play.prepare()
    run = play.start()
    play.wait_for_moment(run)
    send(signal.SIGKILL, victims=list(run.ranks().values()))
    play.ended(run)
    play.finish()
    return play.compare()


def kill_agent(play: Round) -> str:
    """SIGKILL of torchrun: nobody is left to end its processes."""
    play.prepare()
    run = play.start(torchrun=True)
    play.wait_for_moment(run)
    send(signal.SIGKILL, victims=agent_of(run))
    play.finish()  # while they may still live
    play.ended(run)
    return play.compare()


def signal_rank(play: Round, phase: Phase | None = None, number: signal.Signals | None = None) -> str:
    """SIGTERM, SIGINT or SIGUSR1 to one process."""
    play.prepare()
    run = play.start()
    play.wait_for_moment(run, phase)
    return stopped(play, run, number, lambda: one_of(play, run))


def signal_agent(play: Round, phase: Phase | None = None, number: signal.Signals | None = None) -> str:
    """The same to torchrun."""
    play.prepare()
    run = play.start(torchrun=True)
    play.wait_for_moment(run, phase)
    return stopped(play, run, number, lambda: agent_of(run))


def signal_group(play: Round, phase: Phase | None = None, number: signal.Signals | None = None) -> str:
    """The same to torchrun and to all processes, as a terminal's Ctrl-C or Slurm's scancel."""
    play.prepare()
    run = play.start(torchrun=True)
    play.wait_for_moment(run, phase)
    return stopped(play, run, number, lambda: [*agent_of(run), *run.ranks().values()])


def stopped(
    play: Round, run: StartedRun, number: signal.Signals | None, victims: Callable[[], list[int]]
) -> str:
    """The signal, the proper end of the run (see the head of pretrain_llama3_synE.py), and the rest of it."""
    number = number or play.random.choice(STOP_SIGNALS)
    play.moment += f", {number.name}"
    before = last_step(play.folder)
    targets = victims()
    send(number, targets)
    status = play.ended(run)
    messages, logged = own_messages(run.output), last_step(play.folder)
    saved = max((int(path.name[5:]) for path in (play.folder / RUN).glob("step_*")), default=0)
    if run.agent is None and any("after this step" in message for message in messages) and status != 0:
        raise Failed(f"status {status} after {number.name}, expected 0")
    if status not in (0, 1, -number):
        raise Failed(f"status {status} after {number.name}")
    if any("after this step" in message for message in messages) and saved < logged:
        raise Failed(f"step {logged} was done, but {saved} is the last one saved")
    if targets and not messages and saved < STEPS and logged > before:
        raise Failed(f"ended at step {logged} without a word")
    play.finish()
    return play.compare()


def disk_full(play: Round) -> str:
    """The run's folder is on a disk that is too small; then there is room."""
    with small_disk(play.folder / RUN, size_kib=play.random.randint(100, 4500)) as enlarge:
        try:
            play.prepare()
        except (OSError, shutil.Error):
            play.moment = "no room for the checkpoints that are there"
        used = sum(path.stat().st_size for path in (play.folder / RUN).rglob("*") if path.is_file())
        play.moment = play.moment or f"after {used >> 10} KiB"
        run = play.start()
        refused = play.ended(run) != 0
        if refused:
            # Copies that were cut off are told as what they are.
            play.refusal(run, "No space left", "space", "room", "no complete checkpoint")
        enlarge()
        if play.moment.startswith("no room"):
            shutil.rmtree(play.folder / CORPORA)
            for path in (play.folder / RUN).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            play.prepare()
        play.finish()
        return f"refused, then {play.compare()}" if refused else play.compare()


@contextlib.contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Callable[[], object]]:
    """A tmpfs of so many KiB at `folder`; what it gives makes it large.

    Raises:
        Skipped: this machine lets us mount nothing.
    """
    folder.mkdir()
    if not mounted("-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)):
        raise Skipped("a full disk needs the right to mount a tmpfs")
    try:
        yield lambda: mounted("-o", "remount,size=1g", str(folder))
    finally:
        kept = folder.with_name("kept")
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
        folder.rmdir()
        kept.rename(folder)


def mounted(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


def flip_checkpoint(play: Round) -> str:
    """One bit of one file of the newest checkpoint is another one; or of `latest`."""
    play.prepare(checkpoints=2)
    newest = max((play.folder / RUN).glob("step_*"))
    return flipped(play, [*newest.iterdir(), play.folder / RUN / "latest"])


def flip_cache(play: Round) -> str:
    """One bit of one file of the index cache."""
    play.prepare()
    cache = play.folder / CORPORA / ".index_cache"
    if not cache.exists():
        shutil.copytree(play.reference.folder / CORPORA / ".index_cache", cache)
    return flipped(play, [path for path in cache.rglob("*") if path.is_file()])


def flip_corpus(play: Round) -> str:
    """One bit of one file of a corpus or of its annotations."""
    play.prepare()
    return flipped(play, [path for path in (play.folder / CORPORA).iterdir() if path.is_file()])


def flipped(play: Round, files: list[Path]) -> str:
    victim = play.random.choice(sorted(path for path in files if path.stat().st_size))
    content = bytearray(victim.read_bytes())
    position, bit = play.random.randrange(len(content)), play.random.randrange(8)
    whole, times = bytes(content), (victim.stat().st_atime_ns, victim.stat().st_mtime_ns)
    content[position] ^= 1 << bit
    victim.write_bytes(content)
    os.utime(victim, ns=times)
    play.moment = f"{victim.relative_to(play.folder)}, byte {position} bit {bit}"
    run = play.start()
    if play.ended(run) == 0:
        verdict = play.compare()
        return f"{verdict}, warned" if "WARNING" in run.output else verdict
    play.refusal(run, victim.name, victim.parent.name)
    victim.write_bytes(whole)
    os.utime(victim, ns=times)
    play.finish()
    return f"refused, then {play.compare()}"


def stop_rank(play: Round) -> str:
    """SIGSTOP of one process: it neither works nor ends."""
    play.prepare()
    run = play.start("--parallel.hang_timeout_minutes", str(HANG_TIMEOUT_MINUTES))
    play.wait_for_moment(run, "training")
    ranks = {pid: rank for rank, pid in run.ranks().items()}
    victims = one_of(play, run)
    send(signal.SIGSTOP, victims)
    if play.ended(run, seconds=HANG_LIMIT_SECONDS) != 0:
        rank = ranks[victims[0]]
        play.moment += f", rank {rank}"
        # Before the processes have met, nobody knows which one is missing.
        play.refusal(run, f"process {rank}", f"rank {rank}", "not all processes have come")
    play.finish()
    return play.compare()


def second_start(play: Round) -> str:
    """The same command once more while the first runs, or stands still for a while."""
    play.prepare()
    first = play.start()
    play.wait_for_moment(first, "training")
    frozen = list(first.ranks().values()) if play.random.random() < 0.7 else []
    play.moment += ", while the first stands still" if frozen else ""
    send(signal.SIGSTOP, frozen)
    second = play.start()
    if frozen:
        second.wait(SECOND_START_SECONDS)
        send(signal.SIGCONT, frozen)
    statuses = [play.ended(run) for run in (first, second)]
    refused = [run for run, status in zip((first, second), statuses, strict=True) if status]
    if len(refused) == 2:
        raise Failed(f"both have refused: {own_messages(first.output + second.output)}")
    for run in refused:
        play.refusal(run, "pid")
    if not refused and not any(f"resuming after step {STEPS}" in run.output for run in (first, second)):
        raise Failed("both have trained")
    play.finish()
    return f"one refused, {play.compare()}" if refused else f"one waited, {play.compare()}"


def batch_size(play: Round) -> str:
    """Another global batch size from a resume on."""
    play.prepare()
    run = play.start()
    play.wait_for_moment(run, "training")
    send(signal.SIGKILL, victims=list(run.ranks().values()))
    play.ended(run)
    for _ in range(2):
        size = play.random.choice([2, 6, 8, 12])
        play.moment += f", {size}"
        run = play.start("--training.global_batch_size", str(size), "--training.exit_after_steps", "2")
        if (status := play.ended(run)) != 0:
            return f"refused: {play.refusal(run, 'global_batch_size')} ({status})"
    run = play.start("--training.global_batch_size", str(size))
    if (status := play.ended(run)) != 0:
        raise Failed(f"status {status}: {run.output[-1500:]}")
    found = unread_or_repeated(play.folder, size)
    if found:
        raise Failed("; ".join(found))
    return "each sample once"


def layout(play: Round) -> str:
    """Another layout, and another number of processes, from a resume on."""
    play.prepare()
    run = play.start()
    play.wait_for_moment(run, "training")
    send(signal.SIGKILL, victims=list(run.ranks().values()))
    play.ended(run)
    name = play.random.choice(sorted(LAYOUTS))
    processes, overrides = LAYOUTS[name]
    play.moment += f", {name}"
    play.finish(*overrides, processes=processes)
    return play.compare(relative=LAYOUT_TOLERANCE)


def latest_removed(play: Round) -> str:
    """`latest` is gone, the checkpoints are there."""
    number = play.prepare(checkpoints=1)
    play.moment = f"{number} checkpoints"
    (play.folder / RUN / "latest").unlink()
    run = play.start()
    if play.ended(run) != 0:
        return f"refused: {play.refusal(run, 'latest')}"
    if "resuming after step" not in run.output:
        raise Failed("the run began afresh beside its checkpoints")
    return play.compare()


def truncate_corpus(play: Round) -> str:
    """A corpus becomes shorter while the run reads it."""
    play.prepare()
    victim = play.random.choice([play.folder / CORPORA / name for name in ("web.bin", "web.idx", "book.bin")])
    whole = victim.read_bytes()
    run = play.start()
    play.wait_for_moment(run)
    size = play.random.randrange(len(whole))
    with victim.open("r+b") as file:
        file.truncate(size)
    play.moment += f", {victim.name} to {size} of {len(whole)} bytes"
    if play.ended(run) != 0:
        play.refusal(run, victim.name, victim.name.removesuffix(".bin").removesuffix(".idx"))
    if last_step(play.folder) < STEPS:
        again = play.start()
        if play.ended(again) == 0:
            raise Failed("a run that reads a shorter corpus came to its end")
        play.refusal(again, victim.name, f"{CORPORA}/{victim.stem}")
    victim.write_bytes(whole)
    play.finish()
    return play.compare()


def agent_of(run: StartedRun) -> list[int]:
    """torchrun, while it is there."""
    return [run.agent] if run.agent is not None and run.poll() is None else []


def one_of(play: Round, run: StartedRun) -> list[int]:
    """One of the run's processes; none where it has ended."""
    alive = list(run.ranks().values())
    return [play.random.choice(alive)] if alive else []


def send(number: signal.Signals, victims: list[int]) -> None:
    """The signal to each that is still there."""
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, number)


KINDS: dict[str, Callable[[Round], str]] = {
    kind.__name__: kind
    for kind in (kill_rank, kill_all, kill_agent, signal_rank, signal_agent, signal_group, disk_full, flip_checkpoint,
                 flip_cache, flip_corpus, stop_rank, second_start, batch_size, layout, latest_removed, truncate_corpus)
}  # fmt: skip
UNMEASURED = ("layout", "batch_size")
"""Kinds whose runs round otherwise: what they decide by measuring would be another mixture."""

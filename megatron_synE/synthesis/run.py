"""A process's part in a synthesis job, and what a job's settings are compared with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.config.synthesis import SynthesisConfig
from megatron_synE.synthesis.client import ChatClient
from megatron_synE.synthesis.engine import Engine
from megatron_synE.synthesis.feed import Feed
from megatron_synE.synthesis.folder import JobFolder, SnippetShards, durable_file
from megatron_synE.synthesis.request import Settings
from megatron_synE.synthesis.results import Results
from megatron_synE.synthesis.task import Tasks


@dataclass(frozen=True)
class Ending:
    """How a process's part in a job ended."""

    reason: str
    """In words."""
    is_complete: bool
    """Whether every shard of the job is finished."""


def run_job(
    config: SynthesisConfig, tasks: Tasks, *, redo: bool = False, on_start: Callable[[Engine], None] = lambda _: None
) -> Ending:
    """Ask about every snippet of a job that is prepared, together with the other processes that do so.

    Args:
        config: without problems.
        redo: make rows by another model or other sampling anew; without, such a job is refused.
        on_start: is handed the engine, whose ``stop`` may be called from a signal handler.

    Raises:
        EndpointError: there is no key, or the server cannot be used.
        ValueError: the job was made with other settings, or a file of it is damaged.
        OSError: the disk is full, or a file cannot be read or written.
    """
    folder = JobFolder(config.job)
    shards = SnippetShards.open(folder)
    settings = Settings(config.endpoint.model, config.sampling)
    client = ChatClient(config.endpoint, config.sampling, config.pace.window)
    record_settings(folder, shards, settings, redo=redo)
    results = Results(folder, shards)
    results.refresh()
    engine = Engine(config, results, Feed(folder, shards, settings, tasks, results, config.pace.window), client)
    on_start(engine)
    asyncio.run(engine.run())
    results.refresh()
    is_complete = len(results.finished) == shards.num_shards
    return Ending(engine.reason or ("" if is_complete else "other processes are at what is left"), is_complete)


def record_settings(folder: JobFolder, shards: SnippetShards, settings: Settings, *, redo: bool) -> None:
    """Compare a job's settings with those in ``job.json``, and write them there. Prompts are no part of them.

    Raises:
        ValueError: they differ and ``redo`` is not set; or its snippets are others.
    """
    wanted = {
        "snippets": shards.fingerprint,
        "model": settings.model,
        "sampling": {name: getattr(settings.sampling, name) for name in settings.sampling.__dataclass_fields__},
    }
    try:
        recorded = JsonFields.of_file(folder.settings, "restore it").content
    except FileNotFoundError:
        recorded = {}
    changed = [name for name in wanted if recorded and recorded.get(name) != wanted[name]]
    if "snippets" in changed:
        raise ValueError(f"{folder.root}: its results are of other snippets than it has now; use another folder")
    if changed and not redo:
        pairs = [f"{name} was {orjson.dumps(recorded.get(name)).decode()}" for name in changed]
        raise ValueError(
            f"{folder.root}: is the journal of another configuration ({'; '.join(pairs)}); restore that, use another "
            "folder, or make its rows anew with --redo (those that are there are kept beside)"
        )
    if changed or not recorded:
        with durable_file(folder.settings) as file:
            file.write(orjson.dumps(wanted, option=orjson.OPT_INDENT_2) + b"\n")

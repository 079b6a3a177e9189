"""Jobs whose answers are given by a function, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from megatron_synE.config.answers import AnswersConfig
from megatron_synE.config.snippets import SnippetsConfig, SnippetSource
from megatron_synE.config.synthesis import SamplingConfig
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.prompts import load_prompts
from megatron_synE.synthesis.request import Paid, Settings
from megatron_synE.synthesis.shard import Shard
from megatron_synE.synthesis.snippets import prepare_snippets
from megatron_synE.synthesis.task import Accepted, ContentError, Snippet
from megatron_synE.synthesis.tasks import PromptTasks
from tests.helpers.commands import SAMPLE

ANSWERS = AnswersConfig(min_solution_chars=20)


def answered_job(
    root: Path,
    pages: list[str],
    answer: Callable[[Snippet], str],
    *,
    kind: str = "physics",
    passes: int = 1,
    shard_rows: int = 8,
    finish: bool = True,
) -> JobFolder:
    """A job with one snippet for each page (each a sentence), judged as the engine would.

    Args:
        finish: whether its shards are committed; else all lies in their journals.
    """
    root.mkdir(parents=True)
    (root / "pages.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages), encoding="utf-8")
    source = SnippetSource(inputs=[str(root / "pages.jsonl")], tokenizer=str(SAMPLE / "tokenizer"), discipline=kind)
    folder = JobFolder(root / "job")
    prompts = load_prompts()
    prepare_snippets(SnippetsConfig({"web": source}, 1, 400, passes=passes, shard_rows=shard_rows), prompts, folder)
    shards, tasks = SnippetShards.open(folder), PromptTasks(prompts, ANSWERS)
    for number in range(shards.num_shards):
        shard = Shard(folder, shards, number, Settings("teacher", SamplingConfig()), tasks)
        for pending in list(shard.pending()):
            paid = Paid(10, 20)
            try:
                verdict = pending.task.judge(pending.snippet, answer(pending.snippet), "stop")
            except ContentError as error:
                shard.settle(pending, paid, "failed", f"content: {error}")
                continue
            if isinstance(verdict, Accepted):
                shard.settle(pending, paid, "accepted", "", verdict.document)
            else:
                shard.settle(pending, paid, "rejected", verdict.reason)
        if finish:
            assert shard.commit(lambda: True)
        shard.close()
    return folder

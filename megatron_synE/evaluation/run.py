"""An evaluation from its command line to its folder of results.

Rank 0 reads data, runs the harness and writes; the other processes of a torchrun serve its engine.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.hf.config import CONFIG_FILE, read_hf_json
from megatron_synE.checkpoint.layout import read_architecture, resolve
from megatron_synE.checkpoint.tokenizer_files import find_tokenizer
from megatron_synE.command_line import output_file
from megatron_synE.config.evaluation_results import (
    COMPARISON_FILE,
    EvaluationResults,
    TaskResult,
    is_finished,
    read_evaluation,
)
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from megatron_synE.evaluation import comparison
from megatron_synE.evaluation.answers import AnswerJournal, first_difference
from megatron_synE.evaluation.encoding import RequestEncoder, bos_policy
from megatron_synE.evaluation.engine import Engine, ScoringRequest
from megatron_synE.evaluation.engines.endpoint import EndpointGenerator
from megatron_synE.evaluation.engines.generators import EngineGenerator, Generator
from megatron_synE.evaluation.engines.transformers_engine import TransformersEngine
from megatron_synE.evaluation.harness import first_prompts, run_harness, write_results
from megatron_synE.evaluation.harness_model import HarnessModel
from megatron_synE.evaluation.llama.batching import BatchLimits
from megatron_synE.evaluation.llama.llama_engine import EngineOptions, LlamaEngine
from megatron_synE.evaluation.manifest import make_manifest
from megatron_synE.evaluation.options import ENGINE, TRANSFORMERS, EvaluationOptions
from megatron_synE.evaluation.tasks.task_files import LoadedTasks, load_tasks
from megatron_synE.runtime import choose_device
from megatron_synE.runtime.process_groups import world_size_from_environment
from megatron_synE.runtime.run_lock import RunLock

GENERATION_FILE = "generation_config.json"
NUM_PROBED_TOKENS = 32
PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Difference of a token's log-likelihood that rounding may make."""
Say = Callable[[str], None]


def evaluate(options: EvaluationOptions, say: Say, on_lost: Callable[[str], None]) -> None:
    """Evaluate, or say what was found where that is done already.

    Args:
        say: tells the user, on rank 0.
        on_lost: see `RunLock`.

    Raises:
        ValueError: an option, a file or the data is wrong: one message.
    """
    world_size = world_size_from_environment()
    if problems := options.problems(world_size):
        raise ValueError("; ".join(problems))
    is_main = os.environ.get("RANK", "0") == "0"
    encoder = _encoder(options)
    check_vocabulary(encoder.tokenizer, _vocab_size(options), say if is_main else lambda text: None)
    against = read_evaluation(options.against) if is_main and options.against is not None else None
    tasks = _tasks(options) if is_main else None
    if tasks is not None and is_finished(options.output_dir):
        check_same(options.output_dir, _wanted(options, encoder, tasks))  # before a model is loaded
    lock = RunLock({"--output-dir": options.output_dir} if is_main else {}, is_ending=lambda: False, on_lost=on_lost)
    lock.acquire()
    try:

        def lead(engine: Engine) -> None:
            assert tasks is not None
            _Evaluation(options, engine, encoder, tasks, against, say).run()

        engine = _open_engine(options, encoder.tokenizer)
        if isinstance(engine, LlamaEngine):
            engine.lead(lead)
        else:
            with contextlib.closing(engine):
                lead(engine)
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
    finally:
        lock.release()


@dataclass
class _Evaluation:
    """The work of rank 0."""

    options: EvaluationOptions
    engine: Engine
    encoder: RequestEncoder
    tasks: LoadedTasks
    against: EvaluationResults | None
    say: Say

    def run(self) -> None:
        folder, began_at = self.options.output_dir, time.monotonic()
        generator = _open_generator(self.options, self.engine, self.encoder)
        identity = self._identity(generator)
        if is_finished(folder):
            check_same(folder, {"model": identity["model"], "generator": identity["generator"]})
            self.say(f"{folder}: this evaluation is finished already")
        else:
            self._evaluate(folder, generator, identity, began_at)
        if identity["generator"] is not None:
            generator.close()
        results = read_evaluation(folder)
        for line in results_table(results):
            self.say(line)
        if self.against is not None:
            self._compare(results, self.against)

    def _evaluate(self, folder: Path, generator: Generator, identity: dict[str, Any], began_at: float) -> None:
        for notice in (f"begin-of-text: {self.encoder.bos.describe()}", *self.tasks.notices):
            self.say(notice)
        prompts = first_prompts(RequestEncoder(self.encoder.tokenizer, self.encoder.bos), self.tasks)
        for line in shown(prompts):
            self.say(line)
        journal = AnswerJournal(folder, without_places(identity))
        if journal.num_found:
            self.say(f"going on: {journal.num_found:,} requests were answered by an earlier start")
        try:
            model = HarnessModel(self.engine, generator, self.encoder, journal)
            found = run_harness(model, self.tasks, limit=self.options.limit, seed=self.options.seed)
        finally:
            journal.close()
        for note in model.notes():
            self.say(note)
        manifest = make_manifest(
            settings=self.options.settings(), identity=identity, tasks=self.tasks, prompts=prompts,
            notes=[*model.notes()], command=self.options.command,
            seconds=time.monotonic() - began_at,
        )  # fmt: skip
        write_results(folder, found, manifest, began=journal.began, model_name=self._model_name())
        journal.remove()

    def _identity(self, generator: Generator) -> dict[str, Any]:
        """What determines the answers."""
        own = self.engine.info()
        is_same = isinstance(generator, EngineGenerator) and generator.engine is self.engine
        beside = None if is_same else generator.info()
        return {"model": own, "generator": beside, **self.encoder.describe()}

    def _compare(self, results: EvaluationResults, against: EvaluationResults) -> None:
        found = comparison.compare(results, against, str(self.options.against))
        with output_file(self.options.output_dir / COMPARISON_FILE) as file:
            file.write(comparison.as_json(found))
        for line in comparison.table(found):
            self.say(line)

    def _model_name(self) -> str:
        return str(self.options.checkpoint or self.options.hf_dir)


def check_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Whether the finished evaluation in a folder is the one that is asked for.

    Args:
        wanted: fields of its manifest.

    Raises:
        ValueError: it is another one.
    """
    manifest = read_evaluation(folder).manifest or {}
    theirs = {name: manifest.get(name) for name in wanted}
    difference = first_difference(without_places(theirs), without_places(dict(wanted)))
    if difference:
        raise ValueError(
            f"{folder}: holds a finished evaluation with another {difference}; choose another --output-dir"
        )


def _wanted(options: EvaluationOptions, encoder: RequestEncoder, tasks: LoadedTasks) -> dict[str, Any]:
    settings = {"settings": options.settings(), "templates": tasks.templates, "data": tasks.data_files}
    return {**settings, **encoder.describe()}


def without_places(content: Any) -> Any:
    """A JSON value without the paths in it: a model that was moved is the same model."""
    if not isinstance(content, dict):
        return content
    return {name: without_places(value) for name, value in content.items() if name not in ("path", "name")}


def check_vocabulary(tokenizer: CorpusTokenizer, vocab_size: int, say: Say) -> None:
    """Whether a model can read what a tokenizer makes.

    Raises:
        ValueError: the tokenizer has ids that the model does not know.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.name} has ids up to {tokenizer.vocab_size - 1}, and the model a vocabulary of "
            f"{vocab_size}: they do not belong together; name the model's own by --tokenizer-model"
        )
    if tokenizer.vocab_size < vocab_size:
        say(f"tokenizer has {tokenizer.vocab_size:,} ids, the model {vocab_size:,}: no text has the rest of them")


def results_table(results: EvaluationResults) -> Iterator[str]:
    """Lines for the terminal: each benchmark, without the subjects of groups."""
    inside = {name for task in results.tasks.values() for name in task.subtasks}
    rows: list[tuple[str, ...]] = [("task", "metric", "shots", "items", "value", "stderr", "")]
    for name, task in results.tasks.items():
        if name not in inside:
            rows += _rows_of(results, task)
    yield from comparison.aligned(rows)


def _rows_of(results: EvaluationResults, task: TaskResult) -> Iterator[tuple[str, ...]]:
    leaves = [results.tasks[name] for name in task.subtasks if name in results.tasks] or [task]
    for metric in task.metrics:
        stderr = "" if metric.stderr is None else f"{metric.stderr:.4f}"
        items, shots = f"{sum(leaf.num_items for leaf in leaves):,}", str(leaves[0].num_fewshot)
        yield task.task, metric.label, shots, items, f"{metric.value:.4f}", stderr, ""


def shown(prompts: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    """The first prompts of the first task, whole, with their token ids; manifest.json has them of all."""
    for task, own in list(prompts.items())[:1]:
        for number, prompt in enumerate(own, start=1):
            yield f"--- prompt {number} of {task}"
            yield prompt["prompt"]
            yield f"--- token ids: {prompt['token_ids']}"
            if "continuation" in prompt:
                yield f"--- continuation {prompt['continuation']!r}, token ids: {prompt['continuation_token_ids']}"


def _tasks(options: EvaluationOptions) -> LoadedTasks:
    return load_tasks(
        options.tasks, options.data_dir, run_code=options.run_code, num_fewshot=options.num_fewshot
    )


def _encoder(options: EvaluationOptions) -> RequestEncoder:
    where: Path | None = options.tokenizer_model or options.hf_dir
    if where is None:
        assert options.checkpoint is not None
        where = find_tokenizer(options.checkpoint)
    if where is None:
        raise ValueError(f"{options.checkpoint}: no tokenizer beside the checkpoint; name it by --tokenizer-model")
    if not where.exists():
        raise ValueError(f"{where}: no such file or folder")
    tokenizer = build_tokenizer(options.tokenizer_type, where)
    return RequestEncoder(tokenizer, bos_policy(tokenizer, options.add_bos))


def _vocab_size(options: EvaluationOptions) -> int:
    """Of the model, before its weights are read."""
    if options.checkpoint is not None:
        return read_architecture(resolve(options.checkpoint)).vocab_size
    assert options.hf_dir is not None
    config = read_hf_json(options.hf_dir / CONFIG_FILE)
    found = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if not isinstance(found, int):
        raise ValueError(f"{options.hf_dir / CONFIG_FILE}: has no vocab_size; is it a model's folder?")
    return found


def _open_engine(options: EvaluationOptions, tokenizer: CorpusTokenizer) -> Engine:
    if options.hf_dir is not None and read_hf_json(options.hf_dir / CONFIG_FILE).get("model_type") != "llama":
        if world_size_from_environment() > 1:
            raise ValueError(f"{options.hf_dir}: only a Llama is spread over processes; start it without torchrun")
        return _transformers(options, options.hf_dir)
    engine_options = EngineOptions(
        parallel=options.parallel, dtype=options.dtype, transformer_impl=options.transformer_impl,
        limits=BatchLimits(tokens=options.tokens_per_batch), max_length_tokens=options.max_length_tokens,
        end_of_text_ids=end_of_text_ids(options.hf_dir, tokenizer),
    )  # fmt: skip
    if options.hf_dir is not None:
        return LlamaEngine.from_hf(options.hf_dir, engine_options)
    assert options.checkpoint is not None
    return LlamaEngine.from_checkpoint(options.checkpoint, engine_options)


def _transformers(options: EvaluationOptions, folder: Path) -> TransformersEngine:
    device = choose_device(options.parallel.device)
    return TransformersEngine(
        folder, dtype=options.dtype, device=device, tokens_per_batch=options.tokens_per_batch,
        max_length_tokens=options.max_length_tokens,
    )  # fmt: skip


def _open_generator(options: EvaluationOptions, engine: Engine, encoder: RequestEncoder) -> Generator:
    if options.generate_with == ENGINE:
        return EngineGenerator(engine, encoder)
    if options.generate_with == TRANSFORMERS:
        assert options.generating_folder is not None
        beside = _transformers(options, options.generating_folder)
        check_same_model(engine, beside, options)
        return EngineGenerator(beside, encoder)
    return EndpointGenerator(options.generate_with, options.endpoint_model, options.endpoint_key_variable)


def check_same_model(engine: Engine, beside: Engine, options: EvaluationOptions) -> None:
    """Whether the model that continues prompts is the one that is scored, by the likelihood of a few tokens.

    Raises:
        ValueError: it is another one.
    """
    ids = tuple((1 + 7919 * place) % engine.vocab_size for place in range(NUM_PROBED_TOKENS + 1))
    probe = ScoringRequest(ids[:1], ids[1:])
    ((own, _),), ((other, _),) = engine.log_likelihoods([probe]), beside.log_likelihoods([probe])
    if abs(own - other) > PROBE_TOLERANCE[options.dtype] * NUM_PROBED_TOKENS:
        raise ValueError(
            f"--generate-with hf: {options.generating_folder} is another model than {options.checkpoint}: it gives "
            f"{NUM_PROBED_TOKENS} tokens the log-likelihood {other:.3f}, not {own:.3f}; export that step again"
        )


def end_of_text_ids(hf_dir: Path | None, tokenizer: CorpusTokenizer) -> list[int]:
    """What ends a generated text: what the model's files say, as transformers reads them, or the tokenizer's token."""
    for name in (GENERATION_FILE, CONFIG_FILE):
        if hf_dir is not None and (hf_dir / name).is_file():
            found = read_hf_json(hf_dir / name).get("eos_token_id")
            if found is not None:
                return list(found) if isinstance(found, list) else [int(found)]
    return [] if tokenizer.eod_id is None else [tokenizer.eod_id]

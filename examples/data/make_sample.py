"""Write the bilingual sample beside this file: six JSON-lines sources of original text, about one megabyte.

Deterministic. Run ``python examples/data/make_sample.py``; its files are committed, so a quick start never has to.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from generator import chinese, code, english

Document = dict[str, str]


def web(language: str, count: int) -> Iterator[Document]:
    """``count`` pages, with their topics in turn so that each topic has its share."""
    module = {"en": english, "zh": chinese}[language]
    rng, topics = Random(f"web_{language}"), list(module.TOPICS)
    for i in range(count):
        topic = topics[i % len(topics)]
        yield {"text": module.web_page(topic, rng), "topic": topic}


def plain(name: str, count: int) -> Iterator[Document]:
    """``count`` documents of a source without topics."""
    rng = Random(name)
    makers = {
        "book_en": lambda i: english.book_chapter(i + 1, rng),
        "book_zh": lambda i: chinese.book_chapter(i + 1, rng),
        "code_en": lambda i: code.source_file(rng),
        "synthesis_en": lambda i: "\n".join(english.question_and_answer(rng) for _ in range(3)),
    }
    for i in range(count):
        yield {"text": makers[name](i)}


def main() -> None:
    """Write every source as ``{source}.jsonl`` into ``--output-dir``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent)
    directory: Path = parser.parse_args().output_dir
    sources = {
        "web_en": web("en", 240),
        "web_zh": web("zh", 240),
        "book_en": plain("book_en", 24),
        "book_zh": plain("book_zh", 24),
        "code_en": plain("code_en", 80),
        "synthesis_en": plain("synthesis_en", 160),
    }
    for name, documents in sources.items():
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for number, document in enumerate(documents):
                record = {"id": f"{name}-{number}", "source": name, "lang": name[-2:], **document}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

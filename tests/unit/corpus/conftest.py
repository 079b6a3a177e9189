"""Small tokenizers of each format, trained on the shipped sample."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "examples" / "data"


def sample_texts(name: str) -> list[str]:
    """The texts of one source of the shipped sample."""
    with open(SAMPLE / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.fixture(scope="session")
def hf_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE whose special tokens come first, as the trainer of ``tokenizers`` puts them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|start|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts("web_en")[:80] + sample_texts("web_zh")[:80], trainer)
    directory = tmp_path_factory.mktemp("hf")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    return directory


def train_sentencepiece(directory: Path, **options: object) -> Path:
    import sentencepiece

    (directory / "text").write_text("\n".join(sample_texts("web_en")[:80] + sample_texts("web_zh")[:80]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "text"),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=1800,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return directory / "tokenizer.model"


@pytest.fixture(scope="session")
def sentencepiece_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as Llama-2's and TinyLlama's: BPE with byte fallback."""
    return train_sentencepiece(
        tmp_path_factory.mktemp("spm"),
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
    )


@pytest.fixture(scope="session")
def sentencepiece_unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gigatoken does not support."""
    return train_sentencepiece(tmp_path_factory.mktemp("spm"), model_type="unigram")

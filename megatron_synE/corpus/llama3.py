"""What Llama-3's ``tokenizer.model`` does not carry: the split pattern and the special tokens."""

import json

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Text is cut into these pieces before the byte pairs are merged (published with Llama-3)."""

NUM_BASE_TOKENS = 128_000
"""Entries of the published ``tokenizer.model``."""

NUM_SPECIAL_TOKENS = 256

ADDED_TOKEN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def special_tokens() -> list[str]:
    """The 256 special tokens in the order of their ids, which follow those of the base vocabulary."""
    named = [
        BEGIN_OF_TEXT,
        END_OF_TEXT,
        *(f"<|reserved_special_token_{i}|>" for i in range(4)),
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
    ]
    num_reserved = NUM_SPECIAL_TOKENS - len(named)
    return named + [f"<|reserved_special_token_{i}|>" for i in range(5, 5 + num_reserved)]


def tokenizer_json(ranks: dict[bytes, int]) -> str:
    """A ``tokenizer.json`` that encodes like tiktoken does with ``ranks``, special tokens included.

    tiktoken merges any two neighbours whose concatenation has a rank, lowest rank first; ``tokenizer.json`` lists the
    pairs. So each token of two bytes or more is listed with every way to cut it into two tokens.
    """
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges: list[list[str]] = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        cuts.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [[spelled[left], spelled[right]] for left, right in cuts]
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {spelled[token]: rank for token, rank in ranks.items()},
        "merges": merges,
    }
    content: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(ranks) + i, "content": token, "special": True, **ADDED_TOKEN_FLAGS}
            for i, token in enumerate(special_tokens())
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself if printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    return [letter[byte] for byte in range(256)]

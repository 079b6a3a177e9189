"""What Llama-3's ``tokenizer.model`` does not carry: the split pattern and the special tokens."""

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

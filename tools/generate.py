"""Continue a text with a Hugging Face model, greedily: a first look at an export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_synE.command_line import ToolParser, run_tool


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--hf-dir", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--prompt", required=True, help="the beginning of the text")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="most tokens of the continuation")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …")
    arguments = parser.parse_args(argv)
    if arguments.max_new_tokens < 1:
        parser.error("--max-new-tokens must be at least 1")
    return arguments


def generate(hf_dir: Path, prompt: str, max_new_tokens: int, device: str = "cpu") -> str:
    """`prompt` and its greedy continuation by the model in `hf_dir`, without special tokens.

    Raises:
        ValueError: the folder lacks the model or the tokenizer.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (hf_dir / name).is_file():
            raise ValueError(f"{hf_dir}: no {name}; name the folder that tools/convert_checkpoint.py export wrote")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(hf_dir))
    model = AutoModelForCausalLM.from_pretrained(str(hf_dir), dtype="auto").to(device).eval()
    inputs = tokenizer(prompt, return_tensors="pt").to(device)
    with torch.inference_mode():
        output_BS = model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(output_BS[0], skip_special_tokens=True))


def main(argv: list[str] | None = None) -> int:
    """Print the text; 0, or 1 after one message about what is wrong."""
    return run_tool("generate", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Print the text."""
    print(generate(arguments.hf_dir, arguments.prompt, arguments.max_new_tokens, arguments.device))


if __name__ == "__main__":
    sys.exit(main())

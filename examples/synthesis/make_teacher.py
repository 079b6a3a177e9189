"""Make a tiny chat model that has learned one thing: to answer in the form of the mathematics prompt.

It stands for the strong model that one would ask: it is far too small to solve anything, but a server treats it as any
other. It learns the problems of examples/data by heart, on a CPU in less than a minute, and reads only the end of a
prompt.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parents[1] / "data"
PROMPT_CHARS = 60
CHAT_TEMPLATE = f"{{{{ (messages[-1]['content'] | trim)[-{PROMPT_CHARS}:] }}}}<|begin_of_text|>"
SEQUENCE_TOKENS, BATCH_SIZE, LEARNING_RATE = 128, 8, 3e-3
IGNORED = -100


def answers() -> list[str]:
    """The sample's problems, each in the form that the prompt asks for."""
    found = []
    for line in (EXAMPLES / "synthesis_en.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        for problem, solution in re.findall(r"Problem: (.*?)\n\nSolution: (.*?)(?=\n\nProblem: |\Z)", text, re.DOTALL):
            result = re.findall(r"\d+(?:\.\d+)?", solution)[-1]
            solution = f"{solution.strip()} The answer is \\boxed{{{result}}}."
            found.append(f"### Problem\n{problem}\n### Solution\n{solution}")
    return found


def sequences(tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, each [answers, SEQUENCE_TOKENS]: the end of some page, then an answer and the end of text."""
    lines = (EXAMPLES / "web_en.jsonl").read_text(encoding="utf-8").splitlines()
    pages = [json.loads(line)["text"] for line in lines]
    texts = answers()
    tokens = torch.full((len(texts), SEQUENCE_TOKENS), tokenizer.eos_token_id)
    labels = torch.full_like(tokens, IGNORED)
    for row, text in enumerate(texts):
        chat = [{"role": "user", "content": pages[row % len(pages)]}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False)
        before, own = (tokenizer(part, add_special_tokens=False).input_ids for part in (prompt, text))
        whole = [*before, *own, tokenizer.eos_token_id]
        assert len(whole) <= SEQUENCE_TOKENS, len(whole)
        tokens[row, : len(whole)] = torch.tensor(whole)
        labels[row, len(before) : len(whole)] = tokens[row, len(before) : len(whole)]
    return tokens, labels


def train(tokens: torch.Tensor, labels: torch.Tensor, vocab_size: int, num_steps: int) -> LlamaForCausalLM:
    """A small Llama after so many steps."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=None, eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.1)
    for step in range(num_steps):
        rows = torch.randint(len(tokens), (BATCH_SIZE,))
        loss = model(input_ids=tokens[rows], labels=labels[rows]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == num_steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder of the model, in Hugging Face format")
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(EXAMPLES / "tokenizer"))
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.pad_token = tokenizer.eos_token
    model = train(*sequences(tokenizer), len(tokenizer), arguments.steps)
    model.generation_config.do_sample = True  # else the server takes the likeliest token, whatever the temperature
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()

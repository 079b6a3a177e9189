"""What docs/FROM_RAW_TEXT.md starts from, in small: raw Parquet, labelled pages and a backbone, made of examples/data.

    {output}/raw/web_en/part-*.parquet, web_zh/…   columns text, id, url, date; five Chinese pages on medicine
    {output}/raw/code_en/part-0.jsonl.gz           the same fields
    {output}/labelled.jsonl                        text, url, topic: a third of the web pages
    {output}/backbone/                             a Llama of transformers with random weights, and its tokenizer
"""

import argparse
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from safetensors.numpy import save_file

SAMPLE = Path(__file__).resolve().parents[1] / "data"
RARE, NUM_RARE = "medicine_and_health", 5
HIDDEN, FFN, LAYERS, HEADS, GROUPS, VOCAB = 64, 176, 2, 4, 2, 4096


def records(source: str) -> list[dict[str, str]]:
    """The documents of a source of the sample, with what a crawl knows of them."""
    found = []
    for number, line in enumerate((SAMPLE / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        path = f"{source}/{number}"
        crawled = {"url": f"https://example.org/{path}", "date": f"2024-{1 + number % 12:02d}-01"}
        found.append({key: record[key] for key in ("text", "id")} | crawled | {"topic": record.get("topic", "")})
    return found


def write_raw(folder: Path) -> None:
    """The raw files; labels are not in them."""
    for source in ("web_en", "web_zh"):
        pages = records(source)
        if source == "web_zh":
            rare = [page for page in pages if page["topic"] == RARE][-NUM_RARE:]
            pages = [page for page in pages if page["topic"] != RARE or page in rare]
        (folder / source).mkdir(parents=True)
        for number in range(2):
            rows = [{key: page[key] for key in ("text", "id", "url", "date")} for page in pages[number::2]]
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / source / f"part-{number}.parquet")
    (folder / "code_en").mkdir()
    with gzip.open(folder / "code_en" / "part-0.jsonl.gz", "wt", encoding="utf-8") as file:
        for page in records("code_en"):
            file.write(json.dumps({key: page[key] for key in ("text", "id", "url", "date")}) + "\n")


def write_labelled(path: Path) -> None:
    """Every third web page, with its topic."""
    pages = [page for source in ("web_en", "web_zh") for page in records(source)[::3]]
    lines = [json.dumps({key: page[key] for key in ("text", "url", "topic")}, ensure_ascii=False) for page in pages]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_backbone(folder: Path) -> None:
    """Random weights under the names that transformers gives them."""
    shutil.copytree(SAMPLE / "tokenizer", folder)
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.02, shape).astype(np.float32)

    head_dim, tensors = HIDDEN // HEADS, {"model.embed_tokens.weight": weight(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (GROUPS * head_dim, HIDDEN),
            "self_attn.v_proj": (GROUPS * head_dim, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN),
        }  # fmt: skip
        tensors |= {f"model.layers.{layer}.{name}.weight": weight(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    tensors |= {"model.norm.weight": np.ones(HIDDEN, np.float32), "lm_head.weight": weight(VOCAB, HIDDEN)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS, "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": False, "bos_token_id": 4094, "eos_token_id": 4095,
        "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write everything into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True)
    write_raw(output / "raw")
    write_labelled(output / "labelled.jsonl")
    write_backbone(output / "backbone")


if __name__ == "__main__":
    main()

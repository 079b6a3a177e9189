#!/usr/bin/env bash
# Web pages → snippets → a real server with a tiny model → checked documents → tokens → a few steps of training →
# which page is behind each document that was read. Needs no key; the server needs the extra `serve`:
#     .venv/bin/pip install -c constraints.txt -e '.[synthesis,serve]'
# Everything lies in runs/synthesis.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PORT=${PORT:-8377} TEACHER_STEPS=${TEACHER_STEPS:-150}
RUN=runs/synthesis
TOKENIZER=examples/data/tokenizer

say() { printf '\n== %s\n' "$*"; }

rm -rf "$RUN"
mkdir -p "$RUN"

say "1/6 Making a tiny teacher, which has learned the form of an answer and nothing else"
python examples/synthesis/make_teacher.py "$RUN/teacher" --steps "$TEACHER_STEPS"

say "2/6 Starting transformers' OpenAI-compatible server with it"
mkdir -p "$RUN/cache"  # where it looks for models to list
HF_HUB_CACHE="$RUN/cache" transformers serve "$RUN/teacher" --host 127.0.0.1 --port "$PORT" --device cpu >"$RUN/server.log" 2>&1 &
server=$!
stop_server() { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true; }
trap stop_server EXIT

say "3/6 Asking for questions and answers; the run waits for the server to come up"
python tools/synthesize.py run --config examples/synthesis/synthesis.yaml \
    --endpoint.base_url "http://127.0.0.1:$PORT/v1"
python tools/synthesize.py status --config examples/synthesis/synthesis.yaml

say "4/6 Exporting the documents: no duplicates, nothing of the benchmarks that --benchmark would name"
python tools/synthesize.py export --config examples/synthesis/synthesis.yaml --output "$RUN/synthesis_en.jsonl"
stop_server

say "5/6 Tokenising them, with what they were made from"
for source in examples/data/web_en.jsonl "$RUN/synthesis_en.jsonl"; do
    keep=()
    case $source in "$RUN"/*) keep=(--keep-keys metadata) ;; esac
    python tools/preprocess_data.py --input "$source" --output-prefix "$RUN/corpus/$(basename "$source" .jsonl)" \
        --tokenizer-model "$TOKENIZER" --append-eod --id-key id ${keep[@]+"${keep[@]}"}
done

say "6/6 Training a few steps on both, and naming the snippets that were read"
torchrun --nproc-per-node 1 pretrain_llama3_synE.py --config examples/synthesis/stage.yaml
python tools/inspect_stream.py --config examples/synthesis/stage.yaml --checkpoint "$RUN/checkpoints" --steps 0:10 \
    --documents "$RUN/documents.jsonl"

say "Done"
cat <<END
questions and answers    $RUN/synthesis_en.jsonl
job, with its journal    $RUN/job
what was read            $RUN/documents.jsonl
END

#!/usr/bin/env bash
# Text → tokens → a backbone → continual pre-training in two stages on two processes, stopped and resumed →
# Hugging Face → a generated line → a report. `make quickstart` installs what is needed and calls this; every command can
# be copied.
# Arguments go to the trainer. Everything lies in runs/quickstart.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

say() { printf '\n== %s\n' "$*"; }
train() { torchrun --nproc-per-node 2 pretrain_llama3_synE.py "$@"; }

RUN=runs/quickstart
TOKENIZER=examples/data/tokenizer

if [ -e "$RUN" ]; then
    say "Removing the earlier quick start in $RUN: this one starts afresh"
    rm -rf "$RUN"
fi
mkdir -p "$RUN"

say "1/8 Tokenising the bilingual sample"
for source in web_en web_zh book_en book_zh code_en synthesis_en; do
    topic=()
    case $source in web_*) topic=(--topic-key topic) ;; esac
    python tools/preprocess_data.py --input "examples/data/$source.jsonl" --output-prefix "$RUN/corpus/$source" \
        --tokenizer-model "$TOKENIZER" --append-eod ${topic[@]+"${topic[@]}"}
done

say "2/8 Making a backbone: a small Llama-3 that reads English only, in Hugging Face format"
train --config examples/quickstart/backbone.yaml "$@"
python tools/convert_checkpoint.py export --checkpoint "$RUN/backbone/checkpoints" --hf-dir "$RUN/backbone/hf" \
    --tokenizer-dir "$TOKENIZER"

say "3/8 Scoring the Chinese documents: the perplexity that the backbone gives them"
python tools/annotate_corpus.py perplexity --hf-dir "$RUN/backbone/hf" \
    --prefix "$RUN/corpus/web_zh_text_document" "$RUN/corpus/book_zh_text_document"

say "4/8 Continual pre-training from the backbone, tensor parallel; it is stopped half-way"
train --config examples/quickstart/quickstart.yaml --training.exit_after_steps 60 "$@"

say "5/8 Resuming with the same command, to the end of stage II"
train --config examples/quickstart/quickstart.yaml "$@"

say "6/8 Exporting to Hugging Face format"
python tools/convert_checkpoint.py export --checkpoint "$RUN/checkpoints" --hf-dir "$RUN/hf" --tokenizer-dir "$TOKENIZER"

say "7/8 Loading the export in transformers, and generating"
python tools/generate.py --hf-dir "$RUN/hf" --prompt "The area of the"

say "8/8 Writing the report: what was learned, what was read, what happened"
python tools/report.py --run "$RUN" --output "$RUN/report.html"

say "Done"
cat <<END
report                $RUN/report.html, for a browser; it needs no network
Hugging Face export   $RUN/hf
checkpoints           $RUN/checkpoints
metrics               $RUN/logs/metrics.jsonl
TensorBoard           .venv/bin/tensorboard --logdir $RUN/logs/tensorboard
tokenised corpora     $RUN/corpus
what was read         .venv/bin/python tools/inspect_stream.py --config examples/quickstart/quickstart.yaml --checkpoint $RUN/checkpoints
END

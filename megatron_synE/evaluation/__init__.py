"""What a model knows: benchmarks on local files, by lm-evaluation-harness over a model where it lies."""

"""The benchmarks: task files, readers of their published data, and judges of answers."""

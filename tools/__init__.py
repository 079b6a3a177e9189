"""The command lines: `python tools/NAME.py`; installed as the package `megatron_synE_tools`, the `syne-…` commands."""

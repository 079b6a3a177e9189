"""Devices and process groups: the only code, with `kernels`, that asks which device it runs on."""

from megatron_synE.runtime.device import choose_device, device_name, peak_memory_bytes, ready_for_copy
from megatron_synE.runtime.process_groups import Runtime, initialize, shut_down

__all__ = ["Runtime", "choose_device", "device_name", "initialize", "peak_memory_bytes", "ready_for_copy",
           "shut_down"]  # fmt: skip

"""Tokens per second and model FLOPs utilisation (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_synE.config.model import LlamaArchitecture

# Dense bf16 TFLOP/s without sparsity, from NVIDIA's data sheets.
KNOWN_PEAK_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0,
}  # fmt: skip


@dataclass(frozen=True)
class Throughput:
    """Turns the time of a step into rates."""

    flops_per_token: float
    world_size: int
    peak_tflops: float | None

    def rates(self, num_tokens: int, step_seconds: float) -> dict[str, float]:
        """tokens/s of the whole job; TFLOP/s of each device; MFU where the peak is known."""
        tokens_per_second = num_tokens / step_seconds
        tflops = tokens_per_second * self.flops_per_token / self.world_size / 1e12
        rates = {"tokens_per_second": tokens_per_second, "tflops_per_device": tflops}
        if self.peak_tflops:
            rates["mfu"] = tflops / self.peak_tflops
        return rates


def make_throughput(
    architecture: LlamaArchitecture, *, seq_length: int, world_size: int, peak_tflops: float | None, device_name: str
) -> Throughput:
    """`peak_tflops`, or the data-sheet figure of a GPU known by name."""
    known = next((peak for name, peak in KNOWN_PEAK_TFLOPS.items() if name in device_name), None)
    return Throughput(
        flops_per_token=architecture.train_flops_per_token(seq_length),
        world_size=world_size,
        peak_tflops=peak_tflops or known,
    )

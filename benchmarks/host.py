"""What is said of the machine and of a process beside a figure."""

from pathlib import Path


def processor_name() -> str:
    """What /proc calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def peak_memory_mb() -> float:
    """Most resident memory of this process so far, 10^6 bytes (getrusage would count the parent's before exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))

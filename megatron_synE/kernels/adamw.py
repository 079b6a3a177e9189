"""Gradient norm and AdamW over flat buffers, many of them in one call: on a GPU that is one launch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, extension, launch
from megatron_synE.kernels.selection import is_compiled


def sum_of_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of the squares of all elements, accumulated beyond fp32: fp64 `[]` where the tensors are, which is one place.

    On a GPU the host does not wait for it, and the same tensors have the same sum, bit for bit.
    """
    device = tensors[0].device if tensors else torch.device("cpu")
    fits = [t for t in tensors if t.is_contiguous() and is_compiled("adamw", t)]
    fitting = set(map(id, fits))
    others = [reference.sum_of_squares(t) for t in tensors if id(t) not in fitting]
    if device.type == "cpu":
        sums = [launch("sum_of_squares", device, code(t), address(t), t.numel()) for t in fits]
        return torch.tensor(sum(sums), dtype=torch.float64) + sum(others)
    total = sum(others, torch.zeros((), dtype=torch.float64, device=device))
    for dtype in {t.dtype for t in fits}:
        total = total + _chunk_sums([t for t in fits if t.dtype == dtype]).sum()
    return total


def _chunk_sums(tensors: list[torch.Tensor]) -> torch.Tensor:
    """fp64: the sums of squares of the chunks that the GPU's blocks work on; tensors of one dtype."""
    device = tensors[0].device
    chunk_elements = extension(device.type).chunk_elements  # type: ignore[union-attr]
    counts = [t.numel() for t in tensors]
    num_chunks = sum(-(-count // chunk_elements) for count in counts)
    sums = torch.empty(num_chunks, dtype=torch.float64, device=device)
    launch("sum_of_squares", device, code(tensors[0]), [address(t) for t in tensors], counts, address(sums))
    return sums


def l2_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm of all elements together, fp32 `[1]` where they are; the host does not wait for it."""
    return sum_of_squares(tensors).sqrt().float().reshape(1)


def scale_(tensors: Sequence[torch.Tensor], factor: float) -> None:
    """Multiply every tensor by `factor` in place; contiguous fp32 tensors in one pass."""
    fits = [t for t in tensors if t.is_contiguous() and t.dtype == torch.float32 and is_compiled("adamw", t)]
    fitting = set(map(id, fits))
    for tensor in tensors:
        if id(tensor) not in fitting:
            tensor.mul_(factor)
        elif tensor.device.type == "cpu":
            launch("scale_in_place", tensor.device, address(tensor), tensor.numel(), factor)
    for device in {t.device for t in fits if t.device.type != "cpu"}:
        there = [t for t in fits if t.device == device]
        launch("scale_in_place", device, [address(t) for t in there], [t.numel() for t in there], factor)


class AdamWBuffers(NamedTuple):
    """What AdamW keeps of one parameter; all of one shape, contiguous, on one device.

    `param` is fp32, and `model_param` (bf16), if given, receives the rounded parameter. Or `param` is bf16, and
    `remainder` (int16) is what it lacks of fp32: see `reference.split_fp32`. Gradient and moments are each fp32 or
    bf16.
    """

    param: torch.Tensor
    grad: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    model_param: torch.Tensor | None = None
    remainder: torch.Tensor | None = None

    def is_taken_by_kernel(self) -> bool:
        """Whether the compiled kernel can work on them.

        Raises:
            ValueError: they do not belong together.
        """
        tensors = [t for t in self[:5] if t is not None]
        if any(t is not None and t.shape != self.param.shape for t in self):
            raise ValueError(f"adamw_ needs tensors of one shape, got {[tuple(t.shape) for t in tensors]}")
        if self.remainder is not None:
            types = (self.param.dtype, self.remainder.dtype)
            if types != (torch.bfloat16, torch.int16) or self.model_param is not None:
                raise ValueError("adamw_ takes an int16 remainder with a bf16 parameter, which is itself the model's")
            fits = self.remainder.is_contiguous() and self.remainder.device == self.param.device
        else:
            model_dtype = torch.bfloat16 if self.model_param is None else self.model_param.dtype
            fits = self.param.dtype == torch.float32 and model_dtype == torch.bfloat16
        return fits and all(t.is_contiguous() for t in tensors) and is_compiled("adamw", *tensors)

    def codes(self) -> tuple[int, ...]:
        """The types of the gradient and of the moments."""
        return tuple(map(code, (self.grad, self.exp_avg, self.exp_avg_sq)))

    def addresses(self) -> tuple[int, ...]:
        """In the kernel's order: fp32 parameter, bf16 parameter, remainder, gradient, moments."""
        main, model = (self.param, self.model_param) if self.remainder is None else (None, self.param)
        return tuple(map(address, (main, model, self.remainder, self.grad, self.exp_avg, self.exp_avg_sq)))


def adamw_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | torch.Tensor = 1.0,
    model_param: torch.Tensor | None = None,
    remainder: torch.Tensor | None = None,
) -> None:
    """`adamw_all_` for one parameter."""
    buffers = AdamWBuffers(param, grad, exp_avg, exp_avg_sq, model_param, remainder)
    adamw_all_([buffers], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, step=step, grad_scale=grad_scale)


def adamw_all_(
    parameters: Sequence[AdamWBuffers],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | torch.Tensor = 1.0,
) -> None:
    """One AdamW step of every parameter in place (arXiv 1711.05101, bias-corrected as torch.optim.AdamW).

    Arithmetic is fp32, and bf16 moments are rounded to the nearest, halves to even. Gradients are multiplied by
    `grad_scale` (clipping) on the fly; as an fp32 tensor of one element on the parameters' GPU it stays there. `step`
    counts from 1. On a GPU, parameters whose buffers have the same dtypes share a launch.

    Raises:
        ValueError: shapes or dtypes of a parameter's buffers do not belong together, or the step is below 1.
    """
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    beta1, beta2 = betas
    in_torch = partial(
        reference.adamw, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, step=step,
        grad_scale=grad_scale,
    )  # fmt: skip
    hyper = (lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step)
    launches: dict[tuple, list[AdamWBuffers]] = defaultdict(list)
    for buffers in parameters:
        device = buffers.param.device
        if not buffers.is_taken_by_kernel():
            in_torch(*buffers)
        elif device.type == "cpu":
            arguments = (*buffers.codes(), *buffers.addresses(), buffers.param.numel())
            launch("adamw", device, *arguments, *hyper, float(grad_scale))
        else:
            launches[(device, buffers.codes(), buffers.remainder is None)].append(buffers)
    for (device, codes, _), together in launches.items():
        tables = ([buffers.addresses() for buffers in together], [buffers.param.numel() for buffers in together])
        launch("adamw", device, *codes, *tables, *hyper, *_host_and_device_scale(grad_scale, device))


def _host_and_device_scale(scale: float | torch.Tensor, device: torch.device) -> tuple[float, int]:
    """A factor, and the address of another one."""
    if not isinstance(scale, torch.Tensor):
        return scale, 0
    assert (scale.device, scale.dtype, scale.numel()) == (device, torch.float32, 1)
    return 1.0, address(scale)

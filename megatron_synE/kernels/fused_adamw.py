"""torch.optim.AdamW whose step is one pass over all flat parameters; state and checkpoints are torch's."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from megatron_synE.kernels.adamw import AdamWBuffers, adamw_all_


class ParameterwiseOptimizer(torch.optim.Optimizer):
    """AdamW by `adamw_all_`, which scales gradients while it reads them; a subclass says what is kept, and where."""

    grad_scale: float | torch.Tensor = 1.0
    """Factor on every gradient of the next step, for clipping without a pass over the gradients.

    As an fp32 tensor `[]` or `[1]` on the parameters' GPU, it need not be known to the host.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._begin(group)
            by_step: dict[int, list[AdamWBuffers]] = defaultdict(list)
            for param in group["params"]:
                grad = self._gradient(param)
                if grad is not None:
                    step, buffers = self._buffers(param, grad, group)
                    by_step[step].append(buffers)
            for step, parameters in by_step.items():
                adamw_all_(
                    parameters,
                    lr=float(group["lr"]),
                    betas=group["betas"],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    step=step,
                    grad_scale=self.grad_scale,
                )
        return loss

    def _begin(self, group: dict[str, Any]) -> None:
        """Called before the parameters of a group."""

    def _gradient(self, param: torch.Tensor) -> torch.Tensor | None:
        return param.grad

    def _buffers(self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> tuple[int, AdamWBuffers]:
        """The number of this step, from 1, and what it changes."""
        raise NotImplementedError


class FusedAdamW(ParameterwiseOptimizer, torch.optim.AdamW):
    """AdamW by `adamw_all_`. An instance of torch.optim.AdamW becomes one by `adopt`, keeping its state."""

    @classmethod
    def adopt(cls, optimizer: torch.optim.AdamW) -> None:
        """Give an existing optimizer our step; megatron-core builds torch's class itself."""
        if any(group["amsgrad"] or group["maximize"] for group in optimizer.param_groups):
            raise ValueError("FusedAdamW does neither amsgrad nor maximize")
        optimizer.__class__ = cls

    def _buffers(self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> tuple[int, AdamWBuffers]:
        state = self.state[param]
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        # megatron-core fills the moments before the first step, and torch keeps the count in a CPU tensor.
        state.setdefault("step", torch.tensor(0.0, dtype=torch.float32))
        state["step"] += 1
        return int(state["step"]), AdamWBuffers(param, grad, state["exp_avg"], state["exp_avg_sq"])

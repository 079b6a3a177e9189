"""torch.optim.AdamW whose step is one pass over each flat parameter; state and checkpoints are torch's."""

from __future__ import annotations

from typing import Any

import torch

from megatron_synE.kernels.adamw import adamw_


class ParameterwiseOptimizer(torch.optim.Optimizer):
    """An optimizer that updates one parameter after the other, and scales the gradients while it reads them."""

    grad_scale: float = 1.0
    """Factor on every gradient of the next step, for clipping without a pass over the gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._begin(group)
            for param in group["params"]:
                grad = self._gradient(param)
                if grad is not None:
                    self._update(param, grad, group)
        return loss

    def _begin(self, group: dict[str, Any]) -> None:
        """Called before the parameters of a group."""

    def _gradient(self, param: torch.Tensor) -> torch.Tensor | None:
        return param.grad

    def _update(self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError


class FusedAdamW(ParameterwiseOptimizer, torch.optim.AdamW):
    """AdamW by `adamw_`. An instance of torch.optim.AdamW becomes one by `adopt`, keeping its state."""

    @classmethod
    def adopt(cls, optimizer: torch.optim.AdamW) -> None:
        """Give an existing optimizer our step; megatron-core builds torch's class itself."""
        if any(group["amsgrad"] or group["maximize"] for group in optimizer.param_groups):
            raise ValueError("FusedAdamW does neither amsgrad nor maximize")
        optimizer.__class__ = cls

    def _update(self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        # megatron-core fills the moments before the first step, and torch keeps the count in a CPU tensor.
        state.setdefault("step", torch.tensor(0.0, dtype=torch.float32))
        state["step"] += 1
        adamw_(
            param,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            lr=float(group["lr"]),
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            step=int(state["step"]),
            grad_scale=self.grad_scale,
        )

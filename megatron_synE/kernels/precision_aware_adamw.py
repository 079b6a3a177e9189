"""AdamW whose moments and main parameters take less memory, with the interface of Transformer Engine's FusedAdam.

megatron-core's `use_precision_aware_optimizer` hands the main parameters to the optimizer, which reads gradients of any
dtype from `param.decoupled_grad` and writes the model's parameters itself. Bytes for each parameter, with the bf16
weight and without the gradient: 14 with everything in fp32, 12 with remainders, 8 with bf16 moments too.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch

from megatron_synE.kernels.adamw import AdamWBuffers
from megatron_synE.kernels.fused_adamw import ParameterwiseOptimizer
from megatron_synE.kernels.reference import join_fp32, split_fp32

MOMENT_DTYPES = (torch.float32, torch.bfloat16)


class PrecisionAwareAdamW(ParameterwiseOptimizer):
    """AdamW by `adamw_all_`. Updates are counted in the group, as `group["step"]`.

    State of a parameter: `exp_avg` and `exp_avg_sq` in their dtypes, and `master_param`, which is the int16 remainder
    of a bf16 parameter (`store_param_remainders`), or its fp32 main value, or an fp32 parameter itself.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        adam_w_mode: bool = True,
        master_weights: bool = True,
        master_weight_dtype: torch.dtype = torch.float32,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = True,
        store_param_remainders: bool = True,
    ) -> None:
        if not (adam_w_mode and master_weights and master_weight_dtype == torch.float32):
            raise ValueError("PrecisionAwareAdamW decouples weight decay and has fp32 main parameters, nothing else")
        for name, dtype in (("exp_avg_dtype", exp_avg_dtype), ("exp_avg_sq_dtype", exp_avg_sq_dtype)):
            if dtype not in MOMENT_DTYPES:
                raise ValueError(f"{name}: {dtype} is not supported; use float32 or bfloat16")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.moment_dtypes = {"exp_avg": exp_avg_dtype, "exp_avg_sq": exp_avg_sq_dtype}
        self.use_decoupled_grad = use_decoupled_grad
        self.store_param_remainders = store_param_remainders

    def _begin(self, group: dict[str, Any]) -> None:
        group["step"] = group.get("step", 0) + 1

    def _gradient(self, param: torch.Tensor) -> torch.Tensor | None:
        return getattr(param, "decoupled_grad" if self.use_decoupled_grad else "grad", None)

    def _buffers(self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> tuple[int, AdamWBuffers]:
        if not self.state[param]:
            self.initialize_state(param)
        state = self.state[param]
        main, moments = state["master_param"], (state["exp_avg"], state["exp_avg_sq"])
        if main.dtype == torch.int16:
            return group["step"], AdamWBuffers(param, grad, *moments, remainder=main)
        model_param = None if param.dtype == torch.float32 else param
        return group["step"], AdamWBuffers(main, grad, *moments, model_param=model_param)

    def initialize_state(self, param: torch.Tensor, store_param_remainders: bool | None = None) -> None:
        """Moments of zero, and a main value that is the parameter's; the second argument is Transformer Engine's."""
        values = param.detach()
        if store_param_remainders is None:
            store_param_remainders = self.store_param_remainders
        state = {name: torch.zeros_like(values, dtype=dtype) for name, dtype in self.moment_dtypes.items()}
        if param.dtype == torch.bfloat16 and store_param_remainders:
            state["master_param"] = torch.zeros_like(values, dtype=torch.int16)
        else:
            state["master_param"] = values.float()  # an fp32 parameter itself
        self.state[param] = state

    def get_unscaled_state(self, param: torch.Tensor, state_name: str) -> torch.Tensor:
        """`exp_avg`, `exp_avg_sq` or `master_param` in fp32; a copy where it is stored otherwise."""
        stored = self.state[param][state_name]
        return join_fp32(param.detach(), stored) if stored.dtype == torch.int16 else stored.float()

    @torch.no_grad()
    def set_scaled_state(self, param: torch.Tensor, state_name: str, unscaled_state: torch.Tensor) -> None:
        """Take over an fp32 value as the state named; with `master_param` the parameter becomes the rounded value."""
        if not self.state[param]:
            self.initialize_state(param)
        stored = self.state[param][state_name]
        if stored.dtype == torch.int16:
            high, remainder = split_fp32(unscaled_state)
            param.copy_(high)
            stored.copy_(remainder)
        else:
            stored.copy_(unscaled_state)
            if state_name == "master_param":
                param.copy_(unscaled_state)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with every state in fp32."""
        packed = super().state_dict()
        params = list(chain.from_iterable(group["params"] for group in self.param_groups))
        packed["state"] = {
            number: {name: self.get_unscaled_state(params[number], name) for name in state}
            for number, state in packed["state"].items()
        }
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict`; torch's own would cast each state to the parameter's dtype."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        params = list(chain.from_iterable(group["params"] for group in self.param_groups))
        for number, state in state_dict["state"].items():
            for name, value in state.items():
                self.set_scaled_state(params[number], name, value)

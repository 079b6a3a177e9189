from __future__ import annotations

import math

import pytest
import torch

from megatron_synE.checkpoint.finite import first_non_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_tensor_with_a_value_that_is_not_finite(dtype: torch.dtype, value: float) -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (1000,), "b": (37, 5), "c": ()}
    tensors = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
    assert first_non_finite(tensors) is None
    tensors["c"].fill_(value)
    tensors["b"][36, 4] = value
    assert first_non_finite(tensors) == "b"


def test_infinities_that_cancel_and_sums_that_overflow() -> None:
    assert first_non_finite({"a": torch.tensor([math.inf, -math.inf])}) == "a"
    assert first_non_finite({"a": torch.full((4,), 3e38), "b": torch.full((100,), 6e4, dtype=torch.float16)}) is None
    assert first_non_finite({}) is None

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.checkpoint.distributed_optimizer import rectangles


@given(width=st.integers(1, 7), height=st.integers(1, 7), data=st.data())
def test_rectangles_are_the_range_in_order(width: int, height: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, width * height))
    stop = data.draw(st.integers(start, width * height))
    numbers = torch.arange(width * height).reshape(height, width)
    found = list(rectangles(start, stop, width))
    assert len(found) <= 3
    parts = [numbers[r.row : r.row + r.num_rows, r.column : r.column + r.num_columns].flatten() for r in found]
    assert torch.equal(torch.cat([*parts, torch.arange(0)]), torch.arange(start, stop))

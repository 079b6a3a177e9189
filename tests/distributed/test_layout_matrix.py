"""Any layout loads any layout's checkpoint, bit for bit: every pair of layouts, of optimizers and of layers.

One chain of loads and saves goes through all of them. Every ordered pair of layouts follows one another in it once,
almost every ordered pair of (optimizer, layers) too, and every layout meets every (optimizer, layers).
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_synE.checkpoint.hf.mapping import parameters
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.checkpoint import MODEL, OPTIMIZER, TINY, build_training, differing_tensors, update
from tests.helpers.distributed import run_distributed

LAYOUTS = {
    "dp": ParallelConfig(),
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "pp2_vpp2": ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2),
    "cp2": ParallelConfig(context_parallel_size=2),
}
# bf16 moments: what the other optimizers take over from them, fp32 holds exactly, and gives back.
PRECISION_AWARE = dataclasses.replace(
    OPTIMIZER, use_precision_aware_optimizer=True, exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16"
)
OPTIMIZERS = {"precision_aware": PRECISION_AWARE, "distributed": OPTIMIZER, "plain": OPTIMIZER}
IMPLEMENTATIONS = ("local", "fused")
KINDS = [(optimizer, implementation) for optimizer in OPTIMIZERS for implementation in IMPLEMENTATIONS]
KINDS_AHEAD = 3  # with it, every layout meets every kind


@dataclasses.dataclass(frozen=True)
class Place:
    """How one link of the chain holds model and optimizer."""

    layout: str
    optimizer: str
    implementation: str

    @classmethod
    def possible(cls, layout: str, kind: tuple[str, str]) -> Place:
        """Only the fused layers split sequences."""
        optimizer, implementation = kind
        return cls(layout, optimizer, "fused" if LAYOUTS[layout].context_parallel_size > 1 else implementation)

    @property
    def parallel(self) -> ParallelConfig:
        """The layout; the plain optimizer has no shards to overlap with."""
        parallel = LAYOUTS[self.layout]
        if self.optimizer == "plain":
            return dataclasses.replace(parallel, use_distributed_optimizer=False)
        return parallel

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return OPTIMIZERS[self.optimizer]


def every_pair_once(size: int) -> list[int]:
    """A ring of size² numbers below `size` in which each ordered pair, also of equals, stands side by side once.

    The Lyndon words of length 1 and 2 one after another (Fredricksen and Maiorana 1978).
    """
    ring = []
    for first in range(size):
        ring.append(first)
        for second in range(first + 1, size):
            ring += [first, second]
    return ring


def full_chain() -> list[Place]:
    """All pairs, and back to the first layout."""
    layouts, kinds = list(LAYOUTS), every_pair_once(len(KINDS))
    ring = every_pair_once(len(layouts))
    ring.append(ring[0])
    return [
        Place.possible(layouts[number], KINDS[kinds[(position + KINDS_AHEAD) % len(kinds)]])
        for position, number in enumerate(ring)
    ]


def short_chain() -> list[Place]:
    """Every layout once; in other numbers of processes."""
    return [Place.possible(layout, KINDS[number % len(KINDS)]) for number, layout in enumerate(LAYOUTS)]


def through(folder: str, chain: list[Place], first_number: int) -> None:
    """At each place load what the one before saved, and save it as `{folder}/{number}`; number 0 trains first."""
    from megatron_synE.checkpoint import load_checkpoint, save_checkpoint

    for number, place in enumerate(chain, start=first_number):
        model = dataclasses.replace(MODEL, transformer_impl=place.implementation)
        chunks, optimizer = build_training(place.parallel, "bf16", optimizer=place.optimizer_config, model=model)
        update(chunks, optimizer, num_steps=2 if number else 3)  # what a load finds, it has to replace
        if number:
            source = f"{folder}/{number - 1}"
            loaded = load_checkpoint(source, architecture=TINY, model_chunks=chunks, optimizer=optimizer)
            assert loaded.has_optimizer and loaded.state["optimizer_step"] == 3
        save_checkpoint(
            f"{folder}/{number}", step=1, architecture=TINY, model_chunks=chunks, optimizer=optimizer, rng_state=None,
            state={},
        )  # fmt: skip


def test_the_chain_holds_every_pair() -> None:
    chain = full_chain()
    assert set(pairwise([place.layout for place in chain])) == {(a, b) for a in LAYOUTS for b in LAYOUTS}
    assert set(pairwise([place.optimizer for place in chain])) == {(a, b) for a in OPTIMIZERS for b in OPTIMIZERS}
    assert len(set(pairwise([place.implementation for place in chain]))) == len(IMPLEMENTATIONS) ** 2
    assert set(chain) == {Place.possible(layout, kind) for layout in LAYOUTS for kind in KINDS}


@pytest.mark.slow
def test_every_pair_of_layouts_optimizers_and_layers(tmp_path: Path) -> None:
    short, full = short_chain(), full_chain()
    # Two processes, then four, then one: data-parallel sizes grow and shrink too.
    stretches = [(2, short), (4, full), (1, [Place("dp", "plain", "local"), Place("dp", "distributed", "fused")])]
    places: list[str] = []
    for world_size, chain in stretches:
        run_distributed(through, world_size, str(tmp_path), chain, len(places), timeout_s=180)
        places += [f"{world_size} processes, {place}" for place in chain]

    stored = {name for name in WholeTensors(tmp_path / "0") if not name.startswith("optimizer.")}
    # The names of Transformer Engine's layers: what they save has these, and they load these.
    assert stored == {parameter.name for parameter in parameters(TINY)}
    for number in range(1, len(places)):
        differing = differing_tensors(tmp_path / "0", tmp_path / str(number))
        assert differing == [], f"{places[number]} after {places[number - 1]}: {differing}"

"""The processes of a run: where each lives, and a board that they write on beside the collectives."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch

from megatron_synE.runtime import processes

STORE_TIMEOUT = timedelta(seconds=20)


@dataclass(frozen=True)
class Peer:
    """One process of the run."""

    host: str
    machine: str
    pid_namespace: int
    pid: int
    start_ticks: int

    @classmethod
    def this_process(cls) -> Peer:
        """The caller."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            machine=processes.machine(),
            pid_namespace=processes.pid_namespace(),
            pid=pid,
            start_ticks=processes.start_ticks(pid) or 0,
        )


class Peers:
    """All processes of a run, by rank.

    The board is torchrun's own store, over a connection that no collective uses, so that a thread can write on it while
    the main thread waits in a collective. Where there is none (a run of one process, or a launcher that has died) each
    process knows of itself only.
    """

    def __init__(self, rank: int, peers: Sequence[Peer], store: torch.distributed.Store | None) -> None:
        self.rank = rank
        self.peers = list(peers)
        self._store = store

    @classmethod
    def meet(cls) -> Peers:
        """Learn of all others; called by all processes, once torch.distributed is up."""
        world_size = torch.distributed.get_world_size()
        own: dict[str, Any] = {**asdict(Peer.this_process()), "token": secrets.token_hex(8)}
        everyone: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(everyone, own)
        token = everyone[0]["token"]  # torchrun's store lives on over restarts: each start has names of its own
        peers = [Peer(**{name: value for name, value in one.items() if name != "token"}) for one in everyone]
        store: torch.distributed.Store | None = None
        if world_size > 1 and "MASTER_ADDR" in os.environ:
            connection = torch.distributed.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
                timeout=STORE_TIMEOUT,
            )  # fmt: skip
            store = torch.distributed.PrefixStore(f"megatron_synE/{token}", connection)
        return cls(torch.distributed.get_rank(), peers, store)

    @property
    def has_board(self) -> bool:
        """Whether what is written reaches the others."""
        return self._store is not None

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return len(self.peers)

    def leave_board(self) -> None:
        """Use the board no more: it went with the launcher, and each try would fill the log."""
        self._store = None

    def raise_counter(self, name: str, by: int = 1) -> int | None:
        """Add to a number on the board, 0 at first; the new value, or None without a board."""
        return self._on_board(lambda store: int(store.add(name, by)))

    def is_first(self, topic: str) -> bool:
        """Whether no other process asked this about `topic` before; without a board each is the first."""
        return self.raise_counter(topic) in (1, None)

    def was_raised(self, name: str) -> bool:
        """Whether any process raised the counter or asked to be the first."""
        return (self.raise_counter(name, by=0) or 0) > 0

    def write(self, name: str, text: str) -> None:
        """Put a text on the board."""
        self._on_board(lambda store: store.set(name, text))

    def read(self, name: str) -> str | None:
        """A text from the board; None where there is none."""
        return self._on_board(lambda store: store.get(name).decode() if store.check([name]) else None)

    def _on_board(self, action: Callable[[torch.distributed.Store], Any]) -> Any:
        store = self._store
        if store is None:
            return None
        try:
            return action(store)
        except RuntimeError:  # the launcher died
            self.leave_board()
            return None

    def state(self, rank: int) -> str | None:
        """In words what a process does ("stopped", "dead"); None where it lives on another machine."""
        peer, own = self.peers[rank], self.peers[self.rank]
        if (peer.machine, peer.pid_namespace) != (own.machine, own.pid_namespace):
            return None
        return processes.state(peer.pid, peer.start_ticks)

    def dead(self) -> list[int]:
        """Ranks on this machine whose process is gone."""
        return [rank for rank in range(self.world_size) if self.state(rank) == "dead"]

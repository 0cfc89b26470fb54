"""A rendezvous for torchrun on one host that opens no socket and reads no pickle.

torchrun's own (`--standalone`) is a TCP store that listens on every interface, and whoever writes
its key there has the value unpickled by torchrun. One agent has nobody to meet: a store in its own
memory is enough. The ranks then meet at a store of their own (`process_group.join_store`).
"""

from __future__ import annotations

import argparse
import uuid

from torch.distributed import HashStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import (
    RendezvousInfo,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from passk_fast.process_group import LOOPBACK

BACKEND = "passk-fast-loopback"


class LoopbackRendezvous(RendezvousHandler):
    """The one agent is rank 0 of 1, in every round: torchrun asks anew for each restart."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store in memory, and a free port of loopback for the ranks' own."""
        store = HashStore()
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo.build(0, store, LOOPBACK))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """None ever: no other host can ask."""
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def take_over(options: argparse.Namespace) -> None:
    """Put this rendezvous in the place of `--standalone` in torchrun's parsed options."""
    rendezvous_handler_registry.register(BACKEND, _create)
    options.standalone, options.local_addr = False, LOOPBACK
    options.rdzv_backend, options.rdzv_id = BACKEND, str(uuid.uuid4())


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)

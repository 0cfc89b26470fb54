"""A rendezvous for several hosts that listens on one address and reads JSON.

torchrun's own c10d rendezvous listens on every interface of its host, and each host unpickles what
any peer has written at its key. Here the store is bound to the address that the hosts were given.
"""

from __future__ import annotations

import json
import pickle
from datetime import datetime, timedelta

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousStateError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    RendezvousBackend,
    Token,
    _NodeDesc,
    _RendezvousState,
    create_handler,
)

from passk_fast.process_group import open_store

_NOTHING = b"null"


class JsonBackend(RendezvousBackend):
    """torch's rendezvous state at one key of a store, as JSON. torch's handler wants it pickled:
    it gets a pickle that this process has made of checked values, never a peer's."""

    def __init__(self, store: TCPStore, run_id: str, name: str) -> None:
        self._name, self._store = name, store
        self._key = f"passk-fast.rendezvous.{run_id}"
        self._compare_set(b"", _NOTHING)

    @property
    def name(self) -> str:
        return self._name

    def get_state(self) -> tuple[bytes, Token] | None:
        """As torch's; RendezvousStateError for anything but a state."""
        try:
            found = self._store.get(self._key)
        except RuntimeError as error:
            raise RendezvousConnectionError("the rendezvous host does not answer") from error
        return None if found == _NOTHING else (pickle.dumps(state_of(found)), found)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """As torch's: written where `token` is what stands there."""
        wanted = json_of(pickle.loads(state))  # torch's handler in this process made it
        found = self._compare_set(token if isinstance(token, bytes) else _NOTHING, wanted)
        if found == _NOTHING:
            return None
        return pickle.dumps(state_of(found)), found, found == wanted

    def _compare_set(self, expected: bytes, wanted: bytes) -> bytes:
        try:
            found = self._store.compare_set(self._key, expected.decode(), wanted.decode())
        except RuntimeError as error:
            raise RendezvousConnectionError("the rendezvous host does not answer") from error
        return bytes(found)


def json_of(state: _RendezvousState) -> bytes:
    """A rendezvous state as JSON."""

    def nodes(some: set[_NodeDesc]) -> list[list[object]]:
        return [_row(node) for node in sorted(some, key=repr)]

    return json.dumps(
        {
            "round": state.round,
            "complete": state.complete,
            "closed": state.closed,
            "deadline": state.deadline and state.deadline.isoformat(),
            "participants": [[*_row(node), rank] for node, rank in state.participants.items()],
            "wait_list": nodes(state.wait_list),
            "redundancy_list": nodes(state.redundancy_list),
            "last_heartbeats": [
                [*_row(node), time.isoformat()] for node, time in state.last_heartbeats.items()
            ],
        }
    ).encode()


def _row(node: _NodeDesc) -> list[object]:
    return [node.addr, node.pid, node.local_id]


def _node(row: list[object]) -> _NodeDesc:
    addr, pid, local_id = row
    return _NodeDesc(str(addr), int(str(pid)), int(str(local_id)))


def state_of(data: bytes) -> _RendezvousState:
    """What `json_of` wrote; RendezvousStateError for anything else."""
    try:
        told = json.loads(data)
        state = _RendezvousState()
        state.round, state.complete = int(told["round"]), bool(told["complete"])
        state.closed, deadline = bool(told["closed"]), told["deadline"]
        state.deadline = None if deadline is None else datetime.fromisoformat(deadline)
        state.participants = {_node(row[:3]): int(row[3]) for row in told["participants"]}
        state.wait_list = {_node(row) for row in told["wait_list"]}
        state.redundancy_list = {_node(row) for row in told["redundancy_list"]}
        state.last_heartbeats = {
            _node(row[:3]): datetime.fromisoformat(row[3]) for row in told["last_heartbeats"]
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RendezvousStateError("the rendezvous key holds something else") from error
    return state


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    host, _, port = parameters.endpoint.rpartition(":")
    timeout = timedelta(seconds=parameters.get_as_int("read_timeout", 60) or 60)
    is_host = bool(parameters.get_as_bool("is_host"))
    try:
        store = open_store(host.strip("[]"), int(port), is_host, timeout)
    except (RuntimeError, OSError) as error:
        raise RendezvousConnectionError("the rendezvous host does not answer") from error
    backend = JsonBackend(store, parameters.run_id, parameters.backend)
    return create_handler(store, backend, parameters)


def register(name: str) -> None:
    """Make this rendezvous known to torchrun, in this process, by a name."""
    rendezvous_handler_registry.register(name, _create)

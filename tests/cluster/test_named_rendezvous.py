"""The rendezvous of several hosts: one address, JSON, and two agents that find each other."""

from __future__ import annotations

import base64
import os
import pickle
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters, RendezvousStateError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from passk_fast.cluster.named_rendezvous import JsonBackend, json_of, register, state_of
from passk_fast.process_group import open_store
from tests.cluster.listeners import listeners
from tests.hostile_pickle import HostilePickle


def _full_state() -> _RendezvousState:
    state, now = _RendezvousState(), datetime.now(UTC)
    one, two, three = (_NodeDesc(f"10.0.0.{n}", 40 + n, n) for n in range(3))
    state.round, state.complete, state.closed, state.deadline = 3, True, True, now
    state.participants, state.last_heartbeats = {two: 0, one: 1}, {one: now, two: now}
    state.wait_list, state.redundancy_list = {three}, {one, three}
    return state


@pytest.mark.parametrize("state", [_RendezvousState(), _full_state()])
def test_a_state_is_the_same_after_json(state: _RendezvousState) -> None:
    assert vars(state_of(json_of(state))) == vars(state)


def test_what_a_peer_writes_is_not_unpickled(tmp_path: Path) -> None:
    store = open_store("127.0.0.1", 0, True, timedelta(seconds=5))
    backend = JsonBackend(store, "run", "name")
    assert backend.get_state() is None
    hostile = pickle.dumps(HostilePickle(tmp_path / "executed"))
    for data in (base64.b64encode(hostile).decode(), "[]", '{"round": "x"}', "{}"):
        store.set("passk-fast.rendezvous.run", data)
        with pytest.raises(RendezvousStateError):
            backend.get_state()
    assert not (tmp_path / "executed").exists()


def test_only_the_holder_of_the_last_state_may_write() -> None:
    store = open_store("127.0.0.1", 0, True, timedelta(seconds=5))
    backend = JsonBackend(store, "run", "name")
    state = _full_state()
    first = backend.set_state(pickle.dumps(state))
    assert first is not None
    assert first[2]
    state.round += 1
    assert backend.set_state(pickle.dumps(state)) == (*first[:2], False), "without its token"
    second = backend.set_state(pickle.dumps(state), first[1])
    assert second is not None
    assert second[2]
    found = backend.get_state()
    assert found is not None
    assert state_of(found[1]).round == 4  # type: ignore[arg-type]


def test_two_agents_meet_and_listen_on_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # as `launch.environment` does
    register("test-named")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before, found = listeners(os.getpid()), []

    def join(is_host: bool) -> None:
        handler = get_rendezvous_handler(
            RendezvousParameters(
                "test-named",
                f"127.0.0.1:{port}",
                "run",
                2,
                2,
                local_addr="127.0.0.1",
                is_host=str(is_host),
                read_timeout="20",
            )
        )
        found.append((handler.next_rendezvous(), handler))

    threads = [threading.Thread(target=join, args=(is_host,)) for is_host in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(info.rank for info, _ in found) == [0, 1]
    assert {info.world_size for info, _ in found} == {2}
    new = listeners(os.getpid()) - before
    assert {address for _, address, _ in new} == {"127.0.0.1"}
    for _, handler in found:
        handler.shutdown()

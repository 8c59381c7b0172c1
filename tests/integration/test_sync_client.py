"""`SyncMeshClient`: the same calls from a script, and nothing left behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from meshforge_trio.client import OutcomeUnknown
from meshforge_trio.errors import Misconfigured, Poison, SessionLost
from meshforge_trio.server import PrivateServer
from meshforge_trio.sync_client import SyncMeshClient

from .client_world import DEADLINE_S, KIM, declare_streams, overhearing, serving

_SCRIPT = """
import sys, threading
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.sync_client import SyncMeshClient
try:
    with SyncMeshClient(sys.argv[1], tenant="t", workspace="w", principal=SecurityContext("kim", "user")) as mesh:
        mesh.call("order", "create", timeout_s=60)
except KeyboardInterrupt:
    print("interrupted", threading.active_count())
"""


@pytest.fixture
async def server(aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer) -> PrivateServer:
    """A server with the streams and nobody who serves."""
    await declare_streams(nats_server.url)
    return nats_server


def connect(url: str) -> SyncMeshClient:
    return SyncMeshClient(url, tenant="t", workspace="w", principal=KIM)


def client_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "meshforge-client"]


async def test_a_script_sends_and_calls(server: PrivateServer, tmp_path: Path) -> None:
    def script() -> None:
        with connect(server.url) as mesh:
            assert mesh.call("order", "create", {"n": 1}, entity_id="o", idempotency_key="k").name == "created"
            assert mesh.call("order", "get", entity_id="o").payload == {"n": 1, "entity_version": 1}
            first = mesh.send("order", "delete", entity_id="o", id="c-1")
            assert (first.id, first.duplicate) == ("c-1", False)
            with pytest.raises(Poison, match="action"):
                mesh.send("order", "no action")
            assert client_threads()
        mesh.close()
        with pytest.raises(trio.ClosedResourceError):
            mesh.send("order", "create")

    with trio.fail_after(DEADLINE_S):
        async with serving(server, tmp_path):
            await trio.to_thread.run_sync(script)
    assert client_threads() == []


async def test_an_unknown_outcome_is_raised_in_the_script(server: PrivateServer) -> None:
    def script() -> None:
        with connect(server.url) as mesh, pytest.raises(OutcomeUnknown):
            mesh.call("order", "create", timeout_s=0.1)

    with trio.fail_after(DEADLINE_S):
        await trio.to_thread.run_sync(script)
    assert client_threads() == []


async def test_closing_ends_what_other_threads_wait_for(server: PrivateServer) -> None:
    mesh = connect(server.url)
    outcome: list[BaseException] = []

    def waits() -> None:
        try:
            mesh.call("order", "create", timeout_s=DEADLINE_S)
        except trio.ClosedResourceError as error:
            outcome.append(error)

    with trio.fail_after(DEADLINE_S):
        async with overhearing(server.url) as passing, trio.open_nursery() as nursery:
            await trio.to_thread.run_sync(mesh.__enter__)
            nursery.start_soon(trio.to_thread.run_sync, waits)
            await passing.receive()
            await trio.to_thread.run_sync(mesh.close)
    assert len(outcome) == 1
    assert client_threads() == []


def test_a_failed_start_leaves_no_thread(nats_server: PrivateServer) -> None:
    url = nats_server.url
    nats_server.stop()
    with pytest.raises(SessionLost):
        connect(url).__enter__()
    with pytest.raises(Misconfigured):
        connect("http://127.0.0.1").__enter__()
    never_opened = connect(url)
    never_opened.close()
    with pytest.raises(trio.ClosedResourceError):
        never_opened.send("order", "create")
    assert client_threads() == []


async def test_an_interrupt_ends_the_script_cleanly(server: PrivateServer) -> None:
    with trio.fail_after(DEADLINE_S):
        async with overhearing(server.url) as passing, trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", _SCRIPT, server.url], stdout=subprocess.PIPE
            )
            nursery.start_soon(process.wait)
            await passing.receive()
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            said = b"".join([bytes(chunk) async for chunk in process.stdout])
    assert b"interrupted 1" in said
    assert process.returncode == 0

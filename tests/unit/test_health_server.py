"""The health endpoint by itself: what it answers, and what guests can do to it (nothing)."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing
from health_guest import DEADLINE_S, SCOPE, Guest, free_port
from prometheus_client.parser import text_string_to_metric_families

from meshforge_trio import health_server
from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.config import Settings
from meshforge_trio.errors import Misconfigured, SessionLost
from meshforge_trio.health import view as health_view
from meshforge_trio.health.figures import StoreFigures, read_figures
from meshforge_trio.health.view import SiteView
from meshforge_trio.health_server import serve_health
from meshforge_trio.metrics import ScopeMetrics, WorkerMetrics
from meshforge_trio.server import PrivateServer
from meshforge_trio.sites import sites
from meshforge_trio.store.sqlite import SQLiteEventStore


def view_of(settings: Settings, metrics: WorkerMetrics, url: str = "nats://127.0.0.1:9") -> SiteView:
    (site,) = sites(settings)
    return SiteView(site, metrics, lambda: ConnectOptions(urls=(url,)))


@asynccontextmanager
async def endpoint(store: Path, url: str = "nats://127.0.0.1:9") -> AsyncIterator[Guest]:
    """One that answers for a process whose engine serves."""
    metrics = WorkerMetrics(started_at=1.0, store_open=True, broker_since=1.0)
    metrics.scopes[SCOPE] = ScopeMetrics(phase="serving", epoch=1)
    settings = Settings(store=store, health_port=free_port())
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(serve_health, settings, [view_of(settings, metrics, url)], 0)
            yield Guest(port, metrics)
            nursery.cancel_scope.cancel()


async def test_live_until_it_ends(tmp_path: Path) -> None:
    async with endpoint(tmp_path / "s.db") as guest:
        assert await guest.gets("/livez") == (200, b"alive\n")
        assert await guest.gets("/livez?verbose") == (200, b"alive\n")
        guest.metrics.stopping = True
        assert await guest.gets("/livez") == (503, b"the process is ending\n")


async def test_ready_while_it_can_work(tmp_path: Path) -> None:
    async with endpoint(tmp_path / "s.db") as guest:
        assert await guest.gets("/readyz") == (200, b"ready\n")
        guest.metrics.disconnected(SessionLost("nobody there"))
        guest.metrics.store_refused = "locked"
        status, body = await guest.gets("/readyz")
        assert status == 503
        assert body.decode().splitlines() == [
            "the store cannot be written: locked",
            "no broker session: nobody there",
            "t/w/a: starting",
        ]


async def test_the_report_of_a_process(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    store = await SQLiteEventStore.open(tmp_path / "s.db")
    assert await store.scope(SCOPE).take_lease("S") is not None
    async with endpoint(tmp_path / "s.db", nats_server.url) as guest:
        status, body = await guest.gets("/healthz")
        report = json.loads(body)
        assert (status, report["status"], report["reasons"]) == (200, "ok", [])
        (scope,) = report["scopes"]
        assert (scope["holder_alive"], scope["phase"], scope["epoch"]) == (True, "serving", 1)
        assert report["broker"]["server"]
        assert report["process"]["worker"] == 0
    await store.close()


async def test_a_failing_report_is_told_by_its_status_too(tmp_path: Path) -> None:
    async with endpoint(tmp_path / "none.db") as guest:
        guest.metrics.disconnected(SessionLost("nobody there"))
        status, body = await guest.gets("/healthz")
        report = json.loads(body)
        assert (status, report["status"]) == (503, "failing")
        assert [reason["status"] for reason in report["reasons"]] == ["failing", "failing", "degraded"]


async def test_a_broker_that_hangs_is_told_within_the_request(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_view, "_BROKER_S", 0.2)
    async with endpoint(tmp_path / "none.db", nats_server.url) as guest:
        nats_server.pause()
        status, body = await guest.gets("/healthz")
        nats_server.resume()
        assert status == 503
        assert json.loads(body)["broker"]["problem"]


async def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    store = await SQLiteEventStore.open(tmp_path / "s.db")
    assert await store.scope(SCOPE).take_lease("S") is not None
    async with endpoint(tmp_path / "s.db") as guest:
        scope = guest.metrics.scopes[SCOPE]
        scope.committed(["decided"] * 3 + ["duplicate"], ["poison"], wrote=True)
        scope.settled(4, 0.003)
        scope.republished = 2
        scope.ended(SessionLost("x"), 1.0)
        status, body = await guest.gets("/metrics")
    await store.close()
    assert status == 200
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    labels = (("agent", "a"), ("tenant", "t"), ("workspace", "w"))

    def value(name: str, *more: tuple[str, str]) -> float:
        return samples[(f"meshforge_{name}", *sorted([*labels, *more]))]

    assert value("commands_total", ("outcome", "decided")) == 3
    assert value("commands_total", ("outcome", "duplicate")) == 1
    assert value("dead_letters_total", ("code", "poison")) == 1
    assert value("republished_total") == 2
    assert value("engine_sessions_lost_total", ("reason", "SessionLost")) == 1
    assert value("turn_commands_bucket", ("le", "1.0")) == 0
    assert value("turn_commands_bucket", ("le", "4.0")) == value("turn_commands_bucket", ("le", "+Inf")) == 1
    assert value("turn_commands_count") == 1
    assert value("turn_commands_sum") == 4
    assert value("turn_seconds_sum") == 0.003
    assert value("outbox") == value("parked") == value("dead") == 0
    assert samples[("meshforge_disk_free_bytes",)] > 0
    assert samples[("process_resident_memory_bytes",)] > 0
    assert 10_000 < samples[("meshforge_allocated_blocks",)] < 2 * sys.getallocatedblocks()


# -- guests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", 405),
        (b"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01 this is TLS \r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nBad header\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nLong: " + b"x" * 9_000, 431),
        (b"GET /" + b"x" * 9_000, 431),
    ],
)
async def test_a_bad_request_is_answered_and_forgotten(tmp_path: Path, request_: bytes, status: int) -> None:
    async with endpoint(tmp_path / "s.db") as guest:
        answer = await guest.sends(request_)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert b"Connection: close" in answer
        assert await guest.gets("/livez") == (200, b"alive\n")


async def test_a_flood_of_headers_disturbs_nobody(tmp_path: Path) -> None:
    async with endpoint(tmp_path / "s.db") as guest, await trio.open_tcp_stream("127.0.0.1", guest.port) as stream:
        await stream.send_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nLong: ")
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * (64 << 20))
        assert await guest.gets("/livez") == (200, b"alive\n")


async def test_head_has_no_body(tmp_path: Path) -> None:
    async with endpoint(tmp_path / "s.db") as guest:
        answer = await guest.sends(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")
        assert re.search(rb"Content-Length: 6\r\n", answer)


async def test_a_slow_guest_is_left_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "_CONNECTION_S", 0.2)
    async with endpoint(tmp_path / "s.db") as guest:
        assert await guest.sends(b"GET /livez HTTP/1.1\r\nHost: ") == b""
        assert await guest.gets("/livez") == (200, b"alive\n")


async def test_a_guest_that_never_reads_is_left_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_server, "_CONNECTION_S", 0.2)
    monkeypatch.setattr(health_server, "exposition", lambda *_: b"x" * (32 << 20))
    async with endpoint(tmp_path / "s.db") as guest, await trio.open_tcp_stream("127.0.0.1", guest.port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(0.5)
        assert await guest.gets("/livez") == (200, b"alive\n")
        assert len(await guest.hears(stream)) < 32 << 20


async def test_too_many_guests_are_turned_away(tmp_path: Path) -> None:
    async with endpoint(tmp_path / "s.db") as guest:
        waiting = [await trio.open_tcp_stream("127.0.0.1", guest.port) for _ in range(health_server._CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await guest.sends(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for stream in waiting:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await guest.gets("/livez") == (200, b"alive\n")


async def test_a_guest_that_leaves_at_once_disturbs_nobody(tmp_path: Path) -> None:
    async with endpoint(tmp_path / "s.db") as guest:
        for farewell in (b"", b"GET /met"):
            async with await trio.open_tcp_stream("127.0.0.1", guest.port) as stream:
                await stream.send_all(farewell)
        with structlog.testing.capture_logs() as logs:
            stream = await trio.open_tcp_stream("127.0.0.1", guest.port)
            await trio.testing.wait_all_tasks_blocked(0.05)
            # Reset, and not ended: what it waits for fails.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
            while not [entry for entry in logs if "went away" in entry["event"]]:
                await trio.sleep(0.01)
        assert await guest.gets("/livez") == (200, b"alive\n")


async def test_a_defect_of_the_endpoint_is_logged_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise KeyError("a defect")

    monkeypatch.setattr(health_server, "exposition", broken)
    with structlog.testing.capture_logs() as logs:
        async with endpoint(tmp_path / "s.db") as guest:
            assert (await guest.gets("/metrics"))[0] == 500
            assert await guest.gets("/livez") == (200, b"alive\n")
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["the health endpoint failed"]


async def test_the_store_is_read_once_a_second_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def counted(path: Path, now: float, *, probe: bool) -> StoreFigures:
        reads.append(now)
        return read_figures(path, now, probe=probe)

    monkeypatch.setattr(health_view, "read_figures", counted)
    monkeypatch.setattr(health_view, "_FRESH_S", 60.0)
    async with endpoint(tmp_path / "s.db") as guest, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(guest.gets, "/metrics")
    assert len(reads) == 1


async def test_a_port_that_is_taken_refuses_to_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(store=tmp_path / "s.db", health_port=taken.getsockname()[1])
        with (
            trio.fail_after(DEADLINE_S),
            pytest.raises(Misconfigured, match=r"health endpoint cannot listen on 127\.0\.0\.1 port"),
        ):
            await serve_health(settings, [view_of(settings, WorkerMetrics())], 0)


async def test_the_port_of_a_worker_must_exist(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "s.db", health_port=65_535)
    with trio.fail_after(DEADLINE_S), pytest.raises(Misconfigured, match="port 65536"):
        await serve_health(settings, [view_of(settings, WorkerMetrics())], 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "10.0.0.1"])
def test_it_listens_on_the_loopback_interface_alone(host: str) -> None:
    from meshforge_trio.config import load_settings

    with pytest.raises(Misconfigured, match=r"one of 127\.0\.0\.1, ::1"):
        load_settings(environ={"MESHFORGE_HEALTH_HOST": host})

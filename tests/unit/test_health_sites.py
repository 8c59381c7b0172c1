"""The health endpoint of a process that serves several sites: each is told by its tenants, and hides no other."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from health_guest import DEADLINE_S, SCOPE, Guest, free_port
from prometheus_client.parser import text_string_to_metric_families

from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.config import Settings
from meshforge_trio.errors import SessionLost
from meshforge_trio.health import view as health_view
from meshforge_trio.health.figures import StoreFigures, read_figures
from meshforge_trio.health.view import SiteView
from meshforge_trio.health_server import serve_health
from meshforge_trio.metrics import ScopeMetrics, WorkerMetrics
from meshforge_trio.sites import sites


@asynccontextmanager
async def two_sites(home: Path) -> AsyncIterator[tuple[Guest, WorkerMetrics]]:
    """A process that serves tenant t, and has stopped serving tenant u; the guest's metrics are those of t."""
    well, stopped = (WorkerMetrics(started_at=1.0, store_open=True, broker_since=1.0) for _ in range(2))
    well.scopes[SCOPE] = ScopeMetrics(phase="serving", epoch=1)
    stopped.stop(SessionLost("its disk failed"))
    port = free_port()
    settings = Settings(
        workspaces=("t/w", "u/w"), health_port=port, tenants={t: {"store": home / f"{t}.db"} for t in ("t", "u")}
    )
    views = [
        SiteView(site, metrics, lambda: ConnectOptions(urls=("nats://127.0.0.1:9",)))
        for site, metrics in zip(sites(settings), (well, stopped), strict=True)
    ]
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_health, settings, views, 0)
            yield Guest(port, well), stopped
            nursery.cancel_scope.cancel()


async def test_a_site_that_was_stopped_is_named(tmp_path: Path) -> None:
    async with two_sites(tmp_path) as (guest, stopped):
        assert await guest.gets("/livez") == (200, b"alive\n")
        assert await guest.gets("/readyz") == (
            503,
            b"u: no longer served until the process is restarted: its disk failed\n",
        )
        stopped.stopped = ""
        guest.metrics.stopping = True
        _, body = await guest.gets("/readyz")
        assert body.decode().splitlines() == ["t: the process is ending", "u: no broker session"]
        assert (await guest.gets("/livez"))[0] == 503


async def test_the_report_of_several_sites_has_one_of_each(tmp_path: Path) -> None:
    async with two_sites(tmp_path) as (guest, _):
        status, body = await guest.gets("/healthz")
        report = json.loads(body)
        assert (status, report["status"]) == (503, "failing")
        assert [site["tenants"] for site in report["sites"]] == [["t"], ["u"]]
        assert [site["process"]["stopped"] for site in report["sites"]] == ["", "its disk failed"]
        told = [reason["what"] for reason in report["reasons"] if reason["tenants"] == ["u"]]
        assert "it is no longer served: its disk failed" in told
        assert not [what for what in told if "the broker" in what], "it has no session, and nobody is to look for why"


async def test_metrics_of_several_sites_carry_their_tenants(tmp_path: Path) -> None:
    async with two_sites(tmp_path) as (guest, _):
        _, body = await guest.gets("/metrics")
    samples = {
        (sample.name, sample.labels.get("tenants") or sample.labels.get("tenant")): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    for name, well, stopped in (("stopped", 0, 1), ("broker_connected", 1, 0), ("crashes_total", 0, 0)):
        assert (samples[f"meshforge_{name}", "t"], samples[f"meshforge_{name}", "u"]) == (well, stopped)
    assert samples["meshforge_serving", "t"] == 1


async def test_a_disk_that_hangs_hides_nothing_of_the_other_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hangs(path: Path, now: float, *, probe: bool) -> StoreFigures:
        if path.name == "u.db":
            assert released.wait(DEADLINE_S)
        return read_figures(path, now, probe=probe)

    monkeypatch.setattr(health_view, "read_figures", hangs)
    monkeypatch.setattr(health_view, "_STORE_S", 0.2)
    async with two_sites(tmp_path) as (guest, _):
        _, body = await guest.gets("/healthz")
        released.set()
    well, hanging = json.loads(body)["sites"]
    assert "there is no store" in well["store"]["problem"]
    assert "did not answer within 0.2 s" in hanging["store"]["problem"]

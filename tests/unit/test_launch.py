"""From settings to what is served: how the scopes of several sites are spread over workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from meshforge_trio import launch
from meshforge_trio.config import Settings
from meshforge_trio.crud import crud_agent
from meshforge_trio.errors import Misconfigured, StoreBroken
from meshforge_trio.policy import ExitCode
from meshforge_trio.runtime import App


def test_the_scopes_of_all_sites_are_spread_over_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three agents, two sites, two workers: who begins with which is as even as if there were one site."""
    begun: dict[int, list[str]] = {0: [], 1: []}

    def runtime(app: App, settings: Settings, *_: Any, worker: int, workers: int, **more: Any) -> None:
        scopes = app.scopes(settings.workspaces)
        # As the runtime chooses what it claims without waiting.
        begun[more["metrics"].worker] += [str(scope) for i, (scope, _) in enumerate(scopes) if i % workers == worker]
        raise Misconfigured("it was only asked what it would begin with")

    monkeypatch.setattr(launch, "Runtime", runtime)
    # It would stay tuned for every test after this one.
    monkeypatch.setattr(launch, "_tune_interpreter", lambda: None)
    settings = Settings(
        workspaces=("a/w", "b/w"), tenants={tenant: {"store": tmp_path / f"{tenant}.db"} for tenant in ("a", "b")}
    )
    app = App([crud_agent(name) for name in ("x", "y", "z")])
    for worker in (0, 1):
        with structlog.testing.capture_logs():
            assert launch.serve(app, settings, worker=worker, workers=2) == ExitCode.MISCONFIGURED
    assert {worker: sorted(scopes) for worker, scopes in begun.items()} == {
        0: ["a/w/x", "a/w/z", "b/w/y"],
        1: ["a/w/y", "b/w/x", "b/w/z"],
    }


def test_a_store_that_breaks_for_one_site_ends_all_sites_on_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Failing:
        @staticmethod
        async def open(path: Path, **_: Any) -> None:
            opened.append(path.name)
            if path.name == "one.db" and opened.count("one.db") == 1:
                await trio.testing.wait_all_tasks_blocked(0.1)
                raise StoreBroken(f"{path.name}: disk I/O error")
            await trio.sleep(0.5)
            raise Misconfigured(f"{path.name}: nobody ended it")

    monkeypatch.setattr(launch, "SQLiteEventStore", Failing)
    monkeypatch.setattr(launch, "_tune_interpreter", lambda: None)
    settings = Settings(
        workspaces=("a/w", "b/w", "c/w"),
        store=tmp_path / "one.db",
        tenants={"b": {"token": "t"}, "c": {"store": tmp_path / "other.db"}},
    )
    with structlog.testing.capture_logs() as logs:
        assert launch.serve(App([crud_agent("x")]), settings) == ExitCode.STORE_BROKEN
    assert sorted((line["tenants"], line["reason"]) for line in logs if "tenants" in line) == [
        ("a", "one.db: disk I/O error"),
        ("b", "one.db: disk I/O error"),
        ("c", "other.db: nobody ended it"),
    ]

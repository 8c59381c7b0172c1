"""The pytest plugin: crash tests for anybody's agents. Loaded by an entry point, so it imports nothing until asked.

    @pytest.mark.chaos
    def test_parcels_survive(chaos_sweep):
        chaos_sweep("parcels:app", commands())

Tests are plain functions, whatever async plugin a project has. Options: `--chaos-plan` runs that one plan instead of
those the tests name, `--chaos-seed` is given to workloads that are functions, `--chaos-report` keeps what does not
pass, with a page to look at. A failing run prints the one line that replays it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from chaos.evidence import Sent
    from chaos.harness import ChaosSweep, ChaosWorld
    from meshforge_trio.server import PrivateServer

    Commands = Sequence[Sent] | Callable[[int], Sequence[Sent]]

__all__ = ["chaos_nats", "chaos_sweep", "chaos_world"]

_PROPERTY = "chaos"


def pytest_addoption(parser: pytest.Parser) -> None:
    """See `pytest --help`."""
    group = parser.getgroup("chaos", "crash tests of MeshForge Trio agents")
    group.addoption("--chaos-plan", metavar="PLAN", help="run this plan in place of those that chaos tests name")
    group.addoption("--chaos-seed", metavar="N", type=int, default=0, help="seed for workloads that are functions")
    group.addoption("--chaos-report", metavar="DIR", help="keep the runs that do not pass in DIR, each with a page")
    group.addoption(
        "--chaos-parallel", metavar="N", type=int, default=4, help="cases of a sweep at a time (default: %(default)s)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse a plan that cannot be run before anything is."""
    config.addinivalue_line("markers", "chaos: kills processes to see what is left; needs a nats-server")
    text = config.getoption("--chaos-plan")
    if text is not None:
        from chaos.plan import PlanError, parse_plan  # noqa: PLC0415

        try:
            parse_plan(text, mortal=True)
        except PlanError as error:
            raise pytest.UsageError(f"--chaos-plan: {error}") from error
    if config.getoption("--chaos-parallel") < 1:
        raise pytest.UsageError("--chaos-parallel must be 1 or more")
    config.pluginmanager.register(_Summary(), "meshforge-chaos-summary")


@pytest.fixture
def chaos_nats() -> Iterator[PrivateServer]:
    """A nats-server of the test's own, on a free port, gone afterwards whatever the test did to it."""
    from meshforge_trio.errors import Misconfigured  # noqa: PLC0415
    from meshforge_trio.server import PrivateServer  # noqa: PLC0415

    server = PrivateServer()
    try:
        server.start()
    except Misconfigured as error:
        server.stop()
        pytest.fail(f"inconclusive: {error}", pytrace=False)
    with server:
        yield server


@pytest.fixture
def chaos_world(request: pytest.FixtureRequest) -> ChaosWorld:
    """Runs agents under one plan: `chaos_world(app, commands, plan)`. Fails the test unless every guarantee held."""
    from chaos.harness import ChaosWorld  # noqa: PLC0415

    return ChaosWorld(**_options(request))


@pytest.fixture
def chaos_sweep(request: pytest.FixtureRequest) -> ChaosSweep:
    """Kills at every hit of every point: `chaos_sweep(app, commands)`. Fails the test at the first that breaks."""
    from chaos.harness import ChaosSweep  # noqa: PLC0415

    return ChaosSweep(**_options(request))


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    config = request.config
    seed = config.getoption("--chaos-seed")
    replay = f"pytest {shlex.quote(request.node.nodeid)}" + (f" --chaos-seed {seed}" if seed else "")
    return {
        "plan": config.getoption("--chaos-plan"),
        "seed": seed,
        "reports": config.getoption("--chaos-report"),
        "parallel": config.getoption("--chaos-parallel"),
        "replay": replay,
        "note": lambda told: request.node.user_properties.append((_PROPERTY, told)),
        "name": request.node.name,
    }


class _Summary:
    """Adds up what the tests tell. Properties of a report travel from xdist's workers to the controller."""

    def __init__(self) -> None:
        self._told: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a finished test told."""
        if report.when == "call":
            properties: Sequence[tuple[str, Any]] = report.user_properties
            self._told += [told for name, told in properties if name == _PROPERTY]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line of figures, and the replay line of everything that did not pass."""
        if not self._told:
            return
        runs, kills = (sum(told[field] for told in self._told) for field in ("runs", "kills"))
        points = {point for told in self._told for point in told["points"]}
        terminalreporter.section("chaos")
        terminalreporter.write_line(f"{runs} runs, {kills} processes killed, at {len(points)} points")
        for told in self._told:
            for line in told["failures"]:
                terminalreporter.write_line(line)

"""The recovery benchmark: how its figures are made, and one takeover for real."""

from __future__ import annotations

import subprocess
import sys
import time
from asyncio import AbstractEventLoop
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.recovery import figures_of, main, percentile
from benchmarks.recovery_rig import Life, Recovered, open_rig


def life(path: Path, *lines: str) -> Life:
    told = path / "told"
    told.write_text("".join(f"{line}\n" for line in lines))
    return Life(subprocess.Popen([sys.executable, "-c", ""]), told)


def test_what_a_worker_reached_is_counted_from_the_fault(tmp_path: Path) -> None:
    worker = life(
        tmp_path, "after_lease 1000000000", "after_lease 3000000000", "received 3500000000", "after_lease 4000000000"
    )
    assert worker.since(2_000_000_000) == {"after_lease": 1.0, "received": 1.5}
    worker.end()


def test_a_worker_that_said_nothing_yet_reached_nothing(tmp_path: Path) -> None:
    worker = life(tmp_path)
    worker.told.unlink()
    assert worker.since(0) == {}
    worker.end()


def test_percentiles() -> None:
    values = [float(i) for i in range(20)]
    assert (percentile(values, 0.5), percentile(values, 0.9), percentile([7.0], 0.9)) == (10.0, 18.0, 7.0)


def test_figures_have_a_target_and_the_phases_that_most_went_through() -> None:
    recoveries = [Recovered(0.1 * i, {"after_lease": 0.01 * i}) for i in range(1, 10)]
    recoveries.append(Recovered(5.0, {"imported": 4.0}))
    total, ninth, *phases = figures_of("back", recoveries, 0.5)
    assert (total.name, total.reached, ninth.value) == ("back, p50", False, 5.0)
    assert [phase.name.strip() for phase in phases] == ["after_lease"]


def test_wrong_usage_is_told() -> None:
    assert CliRunner().invoke(main, ["--kills", "0"]).exit_code == 2


@pytest.mark.slow
async def test_a_killed_worker_is_followed_by_the_one_that_stands_by(
    tmp_path: Path, aio_loop: AbstractEventLoop
) -> None:
    async with open_rig(tmp_path) as rig:
        active = rig.start()
        await rig.ready(1)
        successor = rig.start()
        await rig.ready(2)
        killed_ns = time.monotonic_ns()
        active.end()
        found = await rig.recovered(killed_ns, successor)
    assert 0 < found.phases["after_lease"] < found.phases["after_recovery"] < found.seconds
    assert successor.process.poll() is not None

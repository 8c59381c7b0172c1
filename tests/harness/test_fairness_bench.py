"""The fairness benchmark: how its figures are made, and a flood that is held back and let through for real."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from benchmarks import measure
from benchmarks.fairness import CALM, LOUD, Round, figures_of, main, open_rig
from meshforge_trio.server import PrivateServer


def test_ratios_are_those_of_single_rounds() -> None:
    slow = Round([10.0] * 99 + [20.0] * 2, [20.0] * 99 + [30.0] * 2, 500.0, 1_000.0)
    fast = Round([1.0] * 99 + [2.0] * 2, [4.0] * 99 + [6.0] * 2, 600.0, 900.0)
    found = {figure.name: figure for figure in figures_of("here", [slow, fast, slow], 2.0)}
    assert [found[f"here: {name}"].value for name in ("p50 idle", "p99 idle", "p99 beside a flood")] == [10, 20, 30]
    assert (found["here: ratio of p50"].value, found["here: ratio of p99"].value) == (2.0, 1.5)
    assert (found["here: the flood alone"].value, found["here: the flood beside the other"].value) == (1_000, 500)
    (missed,) = [figure for figure in figures_of("here", [fast], 2.0) if not figure.reached]
    assert (missed.name, missed.value) == ("here: ratio of p99", 3.0)


def test_wrong_usage_is_told() -> None:
    assert CliRunner().invoke(main, ["--rounds", "0"]).exit_code == 2


@pytest.mark.slow
async def test_a_flood_is_held_back_and_let_through(
    nats_server: PrivateServer, tmp_path: Path, aio_loop: AbstractEventLoop
) -> None:
    with trio.fail_after(60):
        async with open_rig(nats_server) as rig:
            with measure.worker(nats_server, tmp_path / "bench.db", (CALM, LOUD)):
                await rig.served()
                await rig.hold_back()
                await rig.fill(2_000)
                assert len(await rig.paced(0.2, 50.0)) == 10
                # The last answer comes before its command's ACK.
                while (left := await rig.backlog()) > 2_000:
                    await trio.sleep(0.05)
                assert left == 2_000
                await rig.let_through()
                while await rig.backlog():
                    await trio.sleep(0.05)

"""The soak test: what it draws, what it cuts out of a store, what it calls growth, and that it finds a planted bug."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from click.testing import CliRunner

from benchmarks.soak import main
from benchmarks.soak_growth import Sample, Trend, open_files, private_kib, trends
from benchmarks.soak_judge import RoundVerdict
from benchmarks.soak_load import Load, entity_prefix
from benchmarks.soak_report import SoakResult, as_svg, as_text, concluded
from benchmarks.soak_run import Soak, recorded_last
from benchmarks.soak_storm import draw_frames, draw_plan, draw_storm
from benchmarks.soak_world import SoakWorld
from chaos.mutants.catalogue import CATALOGUE
from chaos.mutants.patch import Patch
from chaos.plan import Plan, parse_plan
from chaos.rows import OutputRow, Rows
from chaos.verdict import Status
from chaos.zygote import Worker, Zygote
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import Scope

CLAIMS = ("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G11", "G12", "G13")


def samples(count: int = 20, **more: Any) -> list[Sample]:
    """Rounds of 1,000 commands each, with nothing growing but the database."""
    return [
        Sample(
            at_s=20.0 * i,
            pid=1,
            decided=1000 * i,
            decided_in_all=2000 * i,
            rss_kib=40_000,
            blocks=220_000,
            files=20,
            database=2_000_000 * i,
            log=0,
            log_peak=32 << 20,
            **more,
        )
        for i in range(1, count + 1)
    ]


def trend(found: Sequence[Trend], name: str) -> Trend:
    return next(each for each in found if each.name.startswith(name))


# -- growth ----------------------------------------------------------------------------------------------------------


def test_what_stays_flat_holds() -> None:
    assert all(each.holds and each.known for each in trends(samples()))


def test_memory_that_grows_with_every_command_is_found() -> None:
    leaking = [attrs.evolve(each, rss_kib=40_000 + 2 * each.decided) for each in samples()]
    found = trend(trends(leaking), "memory")
    assert not found.holds
    assert found.value == pytest.approx(2000)
    assert "GREW" in str(found)


def test_memory_that_grows_while_caches_warm_up_is_no_leak() -> None:
    warming = [attrs.evolve(each, rss_kib=40_000 + 8 * min(each.decided, 8000)) for each in samples()]
    assert trend(trends(warming), "memory").holds


def test_objects_that_stay_are_found_long_before_the_memory_shows_them() -> None:
    leaking = [attrs.evolve(each, blocks=220_000 + each.decided) for each in samples()]
    found = trend(trends(leaking), "blocks in use")
    assert not found.holds
    assert found.value == pytest.approx(1000)
    assert trend(trends(leaking), "memory").holds


def test_blocks_that_come_and_go_are_no_leak() -> None:
    busy = [attrs.evolve(each, blocks=220_000 + 3000 * (i % 2)) for i, each in enumerate(samples())]
    assert trend(trends(busy), "blocks in use").holds


def test_one_sample_in_the_middle_of_a_recovery_is_no_leak() -> None:
    found = samples()
    found[-2] = attrs.evolve(found[-2], blocks=400_000)
    assert trend(trends(found), "blocks in use").holds


def test_open_files_that_stay_open_are_found() -> None:
    leaking = [attrs.evolve(each, files=20 + i) for i, each in enumerate(samples())]
    assert not trend(trends(leaking), "open files").holds


def test_a_connection_that_is_just_being_made_is_no_leak() -> None:
    busy = [attrs.evolve(each, files=20 + 3 * (i % 2)) for i, each in enumerate(samples())]
    assert trend(trends(busy), "open files").holds


def test_a_log_that_is_never_checkpointed_is_found() -> None:
    found = samples()
    found[3] = attrs.evolve(found[3], log_peak=65 << 20)
    assert not trend(trends(found), "write-ahead log").holds


def test_a_database_that_takes_more_and_more_for_a_command_is_found() -> None:
    growing = [attrs.evolve(each, database=each.decided_in_all**2) for each in samples()]
    assert not trend(trends(growing), "database").holds


def test_too_few_commands_say_nothing() -> None:
    few = [attrs.evolve(each, decided=each.decided // 100, rss_kib=each.decided) for each in samples()]
    found = trend(trends(few), "memory")
    assert not found.known
    assert "too little" in str(found)
    assert not any(each.known for each in trends(samples(2)) if not each.name.startswith("write-ahead"))


def test_this_process_has_memory_and_files() -> None:
    assert private_kib(os.getpid()) > 1000
    assert open_files(os.getpid()) > 2
    assert private_kib(1 << 30) == open_files(1 << 30) == 0


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same() -> None:
    assert draw_storm("a", 1, 20) == draw_storm("a", 1, 20) != draw_storm("b", 1, 20)
    assert draw_frames("a") == draw_frames("a") != draw_frames("b")
    assert Load("a", 1).batch(50) == Load("a", 1).batch(50) != Load("b", 1).batch(50)


def test_every_plan_that_is_drawn_can_be_run() -> None:
    plans = [Plan(draw_plan("seed", serial, 2 + serial % 11)) for serial in range(500)]
    assert all(parse_plan(str(plan), mortal=True) == plan for plan in plans)
    drawn = {(rule.actor, rule.action) for plan in plans for rule in plan.rules}
    assert drawn == {("worker", "kill"), ("worker", "stop"), ("worker", "full"), ("nats", "pause")}


def test_frames_are_met_in_order_and_no_publish_is_swallowed() -> None:
    rules = draw_frames("seed")
    assert parse_plan(str(Plan(rules))) == Plan(rules)
    assert not any((rule.place, rule.action) == ("publish", "swallow") for rule in rules)


def test_a_storm_has_every_kind_of_strike_within_its_time() -> None:
    strikes = [strike for number in range(20) for strike in draw_storm("seed", number, 20)]
    kinds = {strike.kind for strike in strikes}
    assert kinds == {"kill", "corpse", "stop", "takeover", "drain", "restart", "down", "pause", "resend"}
    assert all(0 < strike.at_s < 20 for strike in strikes)


def test_two_tenants_are_sent_the_same_ids_and_entities_of_the_round() -> None:
    sent = Load("seed", 7).batch(2000)
    ids = {
        tenant: {each.command.id for each in sent if each.scope.tenant == tenant and each.at is None}
        for tenant in ("acme", "globex")
    }
    assert len(ids["acme"] & ids["globex"]) > 500
    entities = {each.command.entity_id or "" for each in sent if each.at is None}
    assert all(entity.startswith(entity_prefix(7)) for entity in entities)
    outcomes = {outcome for each in sent for outcome in each.expect}
    assert outcomes == {"decided", "refused", "conflict", "dead", "violation"}


def test_what_is_sent_after_the_faults_surely_succeeds() -> None:
    sent = Load("seed", 1).batch(200, "after")
    assert {each.phase for each in sent} == {"after"}
    assert all(each.query or each.expect == ("decided",) for each in sent)


# -- the verdict -----------------------------------------------------------------------------------------------------


def verdict_of(**more: Any) -> RoundVerdict:
    fields: dict[str, Any] = {
        "images": 2,
        "broken": (),
        "failures": (),
        "examined": dict.fromkeys(CLAIMS, 10),
        "decided": {"worker#1": 400, "worker#2": 100},
        "fired": ("worker#2:any_time@1=kill", "nats:any_time@2=pause(0.5)", "worker#3:after_store@2=stop(0.1)"),
    }
    return RoundVerdict(**{**fields, **more})


def conclusion(*verdicts: RoundVerdict, **more: Any) -> SoakResult:
    fields: dict[str, Any] = {
        "samples": samples(),
        "trends": trends(samples()),
        "ends": 3,
        "broken": (),
        "reasons": (),
    }
    return concluded("7", 60.0, verdicts, **{**fields, **more})


def test_a_soak_that_shows_enough_passes() -> None:
    result = conclusion(verdict_of(), verdict_of())
    assert result.status is Status.PASS
    assert (result.decided, result.corpses, result.places) == (1000, 2, 1)
    assert result.faults == {"nats pause": 2, "worker kill": 2, "worker stop": 2}
    assert "soak: pass, 1.0 minutes, seed 7" in as_text(result)
    assert as_svg(result).count("<polyline") == 5


def test_a_guarantee_or_a_bound_that_is_broken_is_a_violation() -> None:
    assert conclusion(verdict_of(), broken=["round 1, end: G2 broken"]).status is Status.VIOLATION
    grown = Trend("memory of the worker", 99.0, 32.0, "KiB", holds=False)
    result = conclusion(verdict_of(), trends=[grown])
    assert result.status is Status.VIOLATION
    assert "broken: memory of the worker: GREW" in as_text(result)


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([], "no round came to its end"),
        ([verdict_of(fired=("worker#2:any_time@1=kill",))], "1 faults in 1 rounds are too few"),
        ([verdict_of(fired=("nats:any_time@1=restart",) * 5)], "no worker was killed"),
        ([verdict_of(decided={"worker#1": 99})], "99 decisions in 1 rounds are too few"),
        ([verdict_of(examined=dict.fromkeys(CLAIMS[1:], 1))], "nothing to examine for G1"),
    ],
)
def test_what_shows_too_little_is_inconclusive(verdicts: Sequence[RoundVerdict], reason: str) -> None:
    result = conclusion(*verdicts)
    assert result.status is Status.INCONCLUSIVE
    assert reason in result.reasons


def test_the_guarantees_that_fell_are_named_once_each() -> None:
    found = verdict_of(broken=("corpse-1: G5 broken: x", "end: G5 broken: x", "end: G13 broken: y"))
    assert found.broken_ids == ["G5", "G13"]


# -- for real --------------------------------------------------------------------------------------------------------


async def soaked(home: Path, patch: Patch | None = None, seed: str = "test", seconds: float = 8.0) -> SoakResult:
    """Two short rounds, or as many as fit."""
    return await Soak(seed, home, workers=2, tell=lambda text, *, lasting=False: None, patch=patch).run(
        seconds, 4.0, 60.0
    )


@pytest.mark.slow
async def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    result = await soaked(tmp_path)
    assert result.broken == []
    assert result.rounds >= 2
    assert result.decided > 200
    assert all(result.examined[name] for name in CLAIMS if name != "G11")
    assert {sample.pid for sample in result.samples} == {result.samples[0].pid}
    # So few rounds say nothing about growth.
    assert result.status is Status.INCONCLUSIVE


@pytest.mark.slow
async def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    bug = next(each for each in CATALOGUE if each.name == "dedupe-in-memory")
    result = await soaked(tmp_path, bug.patch)
    assert result.status is Status.VIOLATION
    assert any("G2 broken" in text for text in result.broken)
    # What is needed to look at it stays.
    assert {"image-1", "history.jsonl", "run.json"} <= {path.name for path in (tmp_path / "round-1").iterdir()}


def test_a_worker_that_is_just_being_forked_is_nobodys_victim(tmp_path: Path) -> None:
    world = SoakWorld(
        "app",
        url="",
        zygote=cast(Zygote, None),
        home=tmp_path,
        scopes=1,
        server=PrivateServer(),
        size=3,
        plan_of=lambda _: (),
    )
    forking, there, survivor = (Worker(number, tmp_path, pid=pid) for number, pid in ((3, 0), (2, 22), (1, 11)))
    world.workers += [forking, there, survivor]
    assert world.living == [there, survivor]
    assert world.mortals == [there]
    there.ended.set()
    assert world.mortals == []
    world.history.close()


@pytest.mark.slow
async def test_a_worker_that_ends_unasked_is_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def with_killer(self: SoakWorld) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, self)
            while self.survivor is None or not self.survivor.pid:
                await trio.sleep(0.01)
            await self.serving(self.survivor)
            self.survivor.send_signal(signal.SIGKILL)

    keep = SoakWorld.keep
    monkeypatch.setattr(SoakWorld, "keep", with_killer)
    result = await soaked(tmp_path, seconds=3.0)
    assert result.status is Status.VIOLATION
    assert any(text.startswith("worker#1 ended with -9") for text in result.broken)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--minutes", "0"], "--minutes"), (["--seed", "../.."], "--seed"), (["--bug", "none"], "--bug")],
)
def test_wrong_usage_is_told_by_name(arguments: Sequence[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert told in result.output


def test_a_hash_that_later_decisions_have_outdated_is_not_compared() -> None:
    drained, killed = Scope("t", "w", "drained"), Scope("t", "w", "killed")
    outputs = [
        OutputRow(scope, n, "event", f"k{n}", f"e{n}", "done", "evt.t.w.a.done", f"m{n}", b"{}", None, None, None)
        for scope in (drained, killed)
        for n in (1, 2, 3)
    ]
    rows = Rows(outputs=outputs, state_hashes={drained: (3, "new"), killed: (2, "old")})
    assert recorded_last(rows) == {drained: "new"}

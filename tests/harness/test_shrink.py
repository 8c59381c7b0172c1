"""Shrinking: what is left is smaller, still breaks, and nothing of it can go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from chaos.case import Case
from chaos.lab import Outcome
from chaos.mutants.patch import Patch
from chaos.plan import check_plan, parse_plan
from chaos.shrink import Shrunk, shrink, smallest

from .drill import PaperLab, case_of, happens


def shrunk(case: Case, breaks: Callable[[Case], bool], tries_max: int = 500) -> Shrunk:
    async def run(candidate: Case) -> bool:
        check_plan(candidate.plan, candidate.mortal)
        return breaks(candidate)

    async def main() -> Shrunk:
        return await shrink(case, run, tries_max=tries_max)

    return trio.run(main)


def has(case: Case, *rules: str) -> bool:
    return all(rule in [str(each) for each in case.plan.rules] for rule in rules)


def ids(case: Case) -> Sequence[str]:
    return [sent.command.id for sent in case.sent]


def test_rules_that_do_not_matter_go() -> None:
    case = case_of("nats:received@1=restart; worker#1:after_store@1=kill; proxy:puback@1=swallow")
    found = shrunk(case, lambda each: has(each, "worker#1:after_store@1=kill"))
    assert str(found.case.plan) == "worker#1:after_store@1=kill"


def test_a_fault_that_does_not_matter_goes_altogether() -> None:
    assert str(shrunk(case_of("worker#1:after_store@3=kill"), lambda each: True).case.plan) == ""


def test_a_first_death_goes_and_the_successor_becomes_the_first() -> None:
    case = case_of("worker#1:after_store@1=kill; worker#2:in_attempt@1=kill; nats:worker#3.received@1=restart")
    found = shrunk(case, lambda each: any(rule.place == "in_attempt" for rule in each.plan.rules))
    assert str(found.case.plan) == "worker#1:in_attempt@1=kill"


def test_hits_come_earlier_as_far_as_it_breaks() -> None:
    case = case_of("worker#1:after_store@9=kill")
    found = shrunk(case, lambda each: any(rule.nth >= 4 for rule in each.plan.rules))
    assert str(found.case.plan) == "worker#1:after_store@4=kill"


def test_the_batch_gets_smaller() -> None:
    assert shrunk(case_of(""), lambda each: each.engine["batch"] >= 8).case.engine["batch"] == 8
    assert shrunk(case_of(""), lambda each: True).case.engine["batch"] == 1


def test_commands_go_but_for_those_that_matter_and_one_of_each_phase() -> None:
    found = shrunk(case_of(""), lambda each: {"c3", "c10"} <= set(ids(each)))
    assert not found.whole
    assert ids(found.case)[:2] == ["c3", "c10"]
    assert [sent.phase for sent in found.case.sent] == ["main", "main", "after"]


def test_all_commands_may_be_needed() -> None:
    case = case_of("worker#1:after_store@2=kill")
    found = shrunk(case, lambda each: len(each.sent) == len(case.sent) and has(each, str(case.plan)))
    assert found.whole
    assert found.case == attrs.evolve(case, engine={**case.engine, "batch": 1})


def test_the_tries_are_counted_and_bounded() -> None:
    asked: list[Case] = []

    def breaks(case: Case) -> bool:
        asked.append(case)
        return False

    case = case_of("worker#1:after_store@9=kill; worker#2:after_store@9=kill")
    assert shrunk(case, breaks, tries_max=5) == Shrunk(case, 5, True)
    assert len(asked) == 5


async def test_no_candidate_is_begun_when_the_time_is_up() -> None:
    async def breaks(case: Case) -> bool:
        raise AssertionError("there was no time for this")

    assert (await shrink(case_of("worker#1:after_store@9=kill"), breaks, seconds_max=0.0)).tries == 0


def test_no_candidate_is_run_twice() -> None:
    asked: list[tuple[str, object, tuple[str, ...]]] = []

    def breaks(case: Case) -> bool:
        asked.append((str(case.plan), case.engine["batch"], tuple(ids(case))))
        return len(case.sent) > 5

    shrunk(case_of("worker#1:after_store@9=kill"), breaks)
    assert len(asked) == len(set(asked))


_POINTS = st.sampled_from(["received", "after_store", "in_publish", "before_ack"])


@given(
    st.lists(st.tuples(_POINTS, st.integers(1, 12)), min_size=1, max_size=4, unique_by=lambda rule: rule[0]),
    st.integers(1, 12),
    st.sets(st.integers(0, 11), max_size=4),
    st.data(),
)
def test_nothing_of_what_is_left_can_go(
    rules: list[tuple[str, int]], nth: int, needed: set[int], data: st.DataObject
) -> None:
    case = case_of("; ".join(f"nats:{place}@{hit}=restart" for place, hit in rules))
    place, hit = data.draw(st.sampled_from(rules))
    least = min(nth, hit)
    wanted = {case.sent[number].command.id for number in needed}

    def breaks(each: Case) -> bool:
        hits = [rule.nth for rule in each.plan.rules if rule.place == place]
        return bool(hits) and hits[0] >= least and wanted <= set(ids(each))

    found = shrunk(case, breaks, tries_max=2000).case
    assert str(found.plan) == f"nats:{place}@{least}=restart"
    assert found.engine["batch"] == 1
    left = [sent for sent in found.sent if sent.phase == "main" and sent.command.id not in wanted]
    assert len(left) <= (0 if wanted else 1)


class Kept:
    """A laboratory's answers, whose runs were kept: they break, or else show nothing. `breaks` is asked about each."""

    def __init__(self, where: Path, breaks: Callable[[Case], bool]) -> None:
        self._where = where
        self._breaks = breaks
        self._number = 0

    def __call__(self, case: Case, patch: Patch | None = None) -> Outcome:
        breaks = self._breaks(case)
        self._number += 1
        home = self._where / f"run-{self._number}"
        home.mkdir()
        outcome = happens(case, fell=["G4"]) if breaks else happens(case, reasons=["no server"])
        (home / "run.json").write_bytes(orjson.dumps(case.as_run(case.sent)))
        (home / "verdict.json").write_bytes(orjson.dumps(outcome.verdict.to_json()))
        return attrs.evolve(outcome, home=home)

    @property
    def left(self) -> set[Path]:
        """The directories that are still there."""
        return set(self._where.iterdir())


def replayed(case: Case) -> str:
    return f"run it with {case.plan}"


def told(path: Path | None, name: str) -> Any:
    assert path is not None
    return orjson.loads((path / name).read_bytes())


async def test_the_smallest_is_run_again_to_see_whether_it_lasts(tmp_path: Path) -> None:
    finals: list[Case] = []

    def breaks(case: Case) -> bool:
        finals.extend([case] if case.record_frames else [])
        lasts = not case.record_frames or len(finals) != 2
        return lasts and len(case.sent) == 14 and len(case.plan.rules) > 0

    kept = Kept(tmp_path, breaks)
    first = kept(case_of("worker#1:after_store@2=kill; worker#2:received@1=kill"))
    found = await smallest(first, PaperLab(kept), replayed)
    assert (found.guarantee, found.same, found.times) == ("G4", 2, 3)
    assert found.replay == "run it with worker#1:received@1=kill"
    assert found.shrunk.whole
    assert found.shown is found.outcome
    # The runs of candidates are gone: what was first found is left, and the smallest.
    assert kept.left == {first.home, found.shown.home}
    assert told(first.home, "verdict.json")["minimal"] == "worker#1:received@1=kill"


async def test_fewer_commands_are_run_again_from_the_directory(tmp_path: Path) -> None:
    kept = Kept(tmp_path, lambda case: True)
    found = await smallest(kept(case_of("")), PaperLab(kept), replayed)
    assert not found.shrunk.whole
    assert found.replay == f"meshforge-chaos replay {found.shown.home}"
    assert told(found.shown.home, "run.json")["replay"] == found.replay


async def test_what_never_happens_again_is_shown_as_it_was_found() -> None:
    case = case_of("worker#1:after_store@2=kill")
    first = happens(case, fell=["G4"])
    found = await smallest(first, PaperLab(), replayed)
    assert (found.same, found.times, found.outcome) == (0, 3, None)
    assert found.shown is first
    assert found.shrunk.case == case


@pytest.mark.parametrize("text", ["worker#1:received@1=kill; worker#2:received@1=kill; worker#3:received@1=kill"])
def test_every_candidate_is_a_plan_that_can_be_run(text: str) -> None:
    asked: list[str] = []

    def breaks(case: Case) -> bool:
        asked.append(str(case.plan))
        return False

    shrunk(attrs.evolve(case_of(text), mortal=False), breaks)
    for plan in asked:
        parse_plan(plan)
    assert "worker#1:received@1=kill; worker#2:received@1=kill" in asked

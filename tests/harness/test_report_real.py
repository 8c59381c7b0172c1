"""Reports of runs that really were run: a kill that passes, and a planted bug that does not."""

from __future__ import annotations

from pathlib import Path

import trio

from chaos.builtin import CRASH_MATRIX
from chaos.lab import Lab
from chaos.mutants.catalogue import CATALOGUE
from chaos.plan import parse_plan
from chaos.report import render_html, render_text
from chaos.report.run import load_run
from chaos.report.text import WIDTH
from chaos.report.turns import called, turns
from chaos.report.words import columns

from .report_browser import Page, open_browser


def opened(home: Path, to: Path) -> tuple[list[str], list[str], int]:
    """What a browser complains of in the page of a run; the names of its lanes; how many records it marks for k1."""
    (to / "page.html").write_text(render_html(home))
    with open_browser(to / "profile") as browser:
        page: Page = browser.open(f"{(to / 'page.html').as_uri()}#key=k1")
        error = page.js("document.documentElement.dataset.error")
        lanes = page.js("[...document.querySelectorAll('svg .name')].map(e => e.textContent)")
        return [*page.errors, *filter(None, [error])], lanes, page.js("parseInt(document.all.matches.textContent)")


async def test_a_kill_with_its_successor(lab: Lab, tmp_path: Path) -> None:
    plan = parse_plan("worker#1:after_store@2=kill")
    outcome = await lab.run(CRASH_MATRIX.case(plan, batch=1, record_frames=True), keep=True)
    assert outcome.home is not None
    run = load_run(outcome.home)
    assert [image.trouble for image in run.images] == ["", ""]
    text = render_text(outcome.home)
    assert text.startswith("PASS")
    assert all(columns(line) <= WIDTH for line in text.splitlines())
    errors, lanes, records = await trio.to_thread.run_sync(opened, outcome.home, tmp_path)
    assert errors == []
    assert lanes == ["client", "broker", "worker#1", "worker#2", "store"]
    assert records > 10


async def test_the_points_of_a_worker_make_whole_turns(lab: Lab) -> None:
    # Three engines side by side in one process, each with two turns at a time.
    outcome = await lab.run(CRASH_MATRIX.case(parse_plan(""), batch=1), keep=True)
    assert outcome.home is not None
    run = load_run(outcome.home)
    found = turns(run.history)
    assert len(found) > 10
    assert all(turn.ended for turn in found)
    assert {name for turn in found for name in turn.names} == set(called(run.history).values())
    points = sum(record.fields.get("point") == "after_ack" for record in run.history)
    assert len(found) == points


async def test_a_planted_bug(lab: Lab, tmp_path: Path) -> None:
    (mutant,) = [mutant for mutant in CATALOGUE if mutant.name == "no-recovery"]
    outcome = await lab.run(mutant.case(), patch=mutant.patch)
    assert outcome.home is not None
    text = render_text(outcome.home)
    assert text.startswith("VIOLATION")
    assert f"\n{mutant.guarantee} broken: " in text
    assert "NOT in stream" in text
    errors, _, records = await trio.to_thread.run_sync(opened, outcome.home, tmp_path)
    assert errors == []
    assert records > 5

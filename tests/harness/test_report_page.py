"""The page in a browser: it runs without an error, shows what happened, and answers mouse, keyboard and address."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest

from chaos.report import render_html
from chaos.report.timeline import RECORDS_MAX

from .report_browser import DEADLINE_S, FLAGS, Browser, Page, chromium, open_browser
from .report_world import HOSTILE, big_run, failing_run, passing_run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The addresses of a passing run's page, a failing one's, and a long one's."""
    home = tmp_path_factory.mktemp("runs")
    made = {"pass": passing_run(home / "pass"), "fail": failing_run(home / "fail"), "big": big_run(home / "big", 520)}
    for name, run in made.items():
        (home / f"{name}.html").write_text(render_html(run))
    return {name: (home / f"{name}.html").as_uri() for name in made}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture
def failed(browser: Browser, pages: Mapping[str, str]) -> Page:
    return browser.open(pages["fail"])


@pytest.fixture
def passed(browser: Browser, pages: Mapping[str, str]) -> Page:
    return browser.open(pages["pass"])


def whole(page: Page) -> None:
    """Nothing went wrong in it, and it asked for nothing but itself."""
    assert page.js("document.documentElement.dataset.ready") == "true"
    assert page.js("document.documentElement.dataset.error") is None
    assert page.errors == []
    assert [address for address in page.requests if not address.startswith(("file:", "data:"))] == []
    assert len([address for address in page.requests if address.startswith("file:")]) == 1


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.js(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent.trim())")
    return found


def count(page: Page, selector: str) -> int:
    found: int = page.js(f"document.querySelectorAll({selector!r}).length")
    return found


def box(page: Page, selector: str) -> Mapping[str, float]:
    found: Mapping[str, float] = page.js(
        f"(b => ({{x: b.x, y: b.y, right: b.right, bottom: b.bottom}}))"
        f"(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    return found


def test_it_runs_from_the_command_line_of_a_browser(pages: Mapping[str, str], tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    command = [chromium(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, "--dump-dom", f"{pages['fail']}#key=k2"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    dom = done.stdout
    assert 'data-ready="true"' in dom
    assert "data-error" not in dom
    for name in ("client", "broker", "worker#1", "worker#2", "store"):
        assert f'data-lane="{name}"' in dom
    assert dom.count('class="glyph fault bad"') == 1
    assert 'class="glyph point dim' in dom
    subprocess.run(
        [*command, "--window-size=1200,800", f"--screenshot={shot}", pages["fail"]],
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    image = shot.read_bytes()
    assert image.startswith(b"\x89PNG")
    assert struct.unpack(">II", image[16:24]) == (1200, 800)


def test_a_failing_run_is_shown(failed: Page) -> None:
    assert texts(failed, "h1") == ["Violation"]
    assert texts(failed, ".fallen h2") == [
        "G1 Not forgotten: a command the stream accepted ends decided.",
        "G4 Delivered: every committed output reaches its stream, once.",
    ]
    assert texts(failed, ".rule.unfired code") == ["worker#2:in_recovery@9=kill"]
    assert texts(failed, "svg .name") == ["client", "broker", "worker#1", "worker#2", "store"]
    assert texts(failed, "svg .ending") == ["killed by SIGKILL", "exit code 0"]
    assert texts(failed, "svg text.rule") == ["after_store@2=kill"]
    assert count(failed, "#timeline .glyph.fault") == 1
    assert count(failed, "rect.turn.cut") == 1
    assert count(failed, "#timeline .glyph.image") == 2
    assert count(failed, "path.zigzag") > 0
    assert texts(failed, "svg .skipped") == ["820 ms"]
    assert texts(failed, "#rows .missing") == ["2 event added v2, NOT in stream"] * 2
    assert texts(failed, ".badge .name") == ["Not forgotten", "Delivered", "One holder", "ledger"]
    assert texts(failed, "details.log pre") == [
        "</pre></script><script>document.documentElement.dataset.error='owned'</script>\"'`{{7*7}}&amp;\\u202e😀"
    ]
    # The commands that findings are about are joined by lines from the beginning, if they are few.
    assert count(failed, "path.thread") > 3
    whole(failed)


def test_a_passing_run_is_shown(passed: Page) -> None:
    assert texts(passed, "h1") == ["Passed"]
    assert count(passed, ".fallen") == 0
    assert count(passed, "#timeline .glyph.fault") == 2
    assert count(passed, "#timeline .glyph.frame") == 2
    assert count(passed, 'rect[data-span="pause"]') == 1
    assert count(passed, "#timeline .glyph.healed") == 1
    whole(passed)


def test_bars_and_marks_lie_where_they_belong(failed: Page) -> None:
    first, second = (box(failed, f'rect.life[data-lane="worker#{n}"]') for n in (1, 2))
    fault = box(failed, "#timeline .glyph.fault")
    assert first["x"] < fault["x"] < fault["right"] <= first["right"] + 8 < second["x"] + 8
    assert first["y"] < fault["y"] < fault["bottom"] < first["bottom"] < second["y"]


def test_a_key_in_the_address_filters(browser: Browser, pages: Mapping[str, str]) -> None:
    page = browser.open(f"{pages['fail']}#key=k2&hide=points")
    assert page.js("document.getElementById('filter').value") == "k2"
    assert texts(page, "#rows tbody tr:not([hidden]) .key") == ["k2"]
    assert page.js("document.getElementById('kind-points').getAttribute('aria-pressed')") == "false"
    assert count(page, "#timeline .glyph.point") == 0
    assert count(page, "#timeline .glyph.call:not(.dim)") == 1
    assert count(page, "#timeline .glyph.call.dim") == 2
    assert count(page, "#timeline .glyph.fault:not(.dim)") == 1
    # Another address of the same page, as by a link or the back button.
    page.js("location.hash = '#key=k1'")
    page.wait("document.getElementById('filter').value === 'k1'")
    page.frame()
    assert texts(page, "#rows tbody tr:not([hidden]) .key") == ["k1"]
    assert count(page, "#timeline .glyph.point") > 0
    whole(page)


def test_a_hostile_key_in_the_address_filters(browser: Browser, pages: Mapping[str, str]) -> None:
    page = browser.open(f"{pages['fail']}#key={quote(HOSTILE[:256], safe='')}")
    assert count(page, "#rows tbody tr:not([hidden])") == 1
    assert count(page, "#timeline .glyph.call:not(.dim)") == 1
    whole(page)


def test_typing_filters_and_escape_clears(failed: Page) -> None:
    failed.press("/")
    assert failed.js("document.activeElement.id") == "filter"
    failed.type("c2")
    # The id of a command finds its key.
    assert texts(failed, "#rows tbody tr:not([hidden]) .key") == ["k2"]
    assert failed.js("location.hash") == "#key=c2"
    assert texts(failed, "#matches")[0].endswith(" records")
    assert count(failed, "#story button.dim") > 0
    failed.press("Escape")
    assert failed.js("document.getElementById('filter').value + location.hash") == ""
    assert count(failed, ".dim, #rows tr[hidden]") == 0
    # What is nobody's key or id is searched for in what is shown.
    failed.press("/")
    failed.type("Killed BY")
    assert texts(failed, "#matches") == ["1 record"]
    assert count(failed, "#rows tbody tr:not([hidden])") == 0
    failed.type(" nobody")
    assert texts(failed, "#matches") == ["no records"]
    whole(failed)


def test_hovering_tells_what_it_is(failed: Page) -> None:
    assert failed.js("document.getElementById('tip').hidden")
    failed.hover("#timeline .glyph.fault")
    (tip,) = texts(failed, "#tip:not([hidden])")
    assert tip.startswith("823.400")
    assert tip.endswith("worker#1FAULT worker#1:after_store@2=kill")
    assert count(failed, "circle.ring.hovered") == 1
    edges = box(failed, "#tip")
    assert edges["x"] >= 0
    assert edges["right"] <= 1440
    failed.hover("h1")
    assert failed.js("document.getElementById('tip').hidden")
    whole(failed)


def test_glyphs_upon_each_other_are_told_together(browser: Browser, pages: Mapping[str, str]) -> None:
    page = browser.open(pages["big"])
    page.hover("#timeline .glyph.send.many")
    lines = texts(page, "#tip p")
    assert len(lines) == 6
    assert any("sends c1 " in line for line in lines)
    assert any("PubAck of c1:" in line for line in lines)
    assert lines[-1].startswith("and ")
    assert lines[-1].endswith(" more here: zoom in")


def test_clicking_pins_and_shows_everything(failed: Page) -> None:
    failed.click("#timeline .glyph.heard")
    assert texts(failed, "#detail .title") == ["hears counter.added a v1 (key k1)"]
    assert '"id": "c1_added"' in texts(failed, "#detail pre")[0]
    assert count(failed, "circle.ring.pinned") == 1
    failed.click(".steps button", 0)
    assert texts(failed, "#detail .title") == ["in_publish@1"]
    failed.click(".steps button", 1)
    assert texts(failed, "#detail .title") == ["hears counter.added a v1 (key k1)"]
    failed.click("#detail button.key")
    assert failed.js("document.getElementById('filter').value") == "k1"
    assert "in default/demo/counter" in texts(failed, "#matches")[0]
    failed.click("#detail button.key")
    assert failed.js("document.getElementById('filter').value") == ""
    # A click where nothing lies lets go.
    x, y = failed.centre("svg .name", 4)
    for kind in ("mousePressed", "mouseReleased"):
        failed.mouse(kind, x, y, button="left", clickCount=1)
    failed.frame()
    assert count(failed, "circle.ring.pinned") == 0
    assert count(failed, "#detail .title") == 0
    whole(failed)


def test_a_line_of_the_story_is_pinned(failed: Page) -> None:
    failed.click("#story li.fault button")
    assert texts(failed, "#detail .title.bad") == ["FAULT worker#1:after_store@2=kill"]
    assert failed.js("document.querySelector('#story li.fault button').getAttribute('aria-current')") == "true"
    ring, fault = box(failed, "circle.ring.pinned"), box(failed, "#timeline .glyph.fault")
    assert ring["x"] < fault["x"]
    assert ring["right"] > fault["right"]


def test_a_finding_leads_to_its_command(failed: Page) -> None:
    failed.click(".fallen .key", 2)
    assert failed.js("document.getElementById('filter').value") == "k2"
    assert texts(failed, "#rows tbody tr:not([hidden]) .key") == ["k2"]


def test_a_badge_opens_its_sentence_and_findings(failed: Page) -> None:
    assert count(failed, ".said:not([hidden])") == 0
    failed.click('button.badge[data-id="G4"]')
    (said,) = texts(failed, ".said:not([hidden]) .sentence")
    assert said == "G4 Delivered: every committed output reaches its stream, once."
    assert texts(failed, ".said:not([hidden]) .what") == ["output 2 (c2_added) is not in MESHFORGE_EVENTS"]
    assert failed.js("document.querySelector('button.badge[data-id=\"G4\"]').getAttribute('aria-expanded')") == "true"
    failed.click('button.badge[data-id="G2"]')
    assert texts(failed, ".said:not([hidden])") == ["G2 was not judged in this run."]
    failed.click('button.badge[data-id="G2"]')
    assert count(failed, ".said:not([hidden])") == 0


def test_kinds_can_be_hidden(passed: Page) -> None:
    for kind, selector in (("frames", "frame"), ("commits", "commit"), ("faults", "fault"), ("points", "point")):
        assert count(passed, f"#timeline .glyph.{selector}") > 0
        passed.click(f"#kind-{kind}")
        assert count(passed, f"#timeline .glyph.{selector}") == 0
    assert passed.js("decodeURIComponent(location.hash)") == "#hide=frames,commits,faults,points"
    passed.click("#kind-frames")
    assert count(passed, "#timeline .glyph.frame") == 2
    whole(passed)


def test_zooming_spreads_and_dragging_moves(failed: Page) -> None:
    def gap() -> float:
        return box(failed, "#timeline .glyph.fault")["x"] - box(failed, 'rect.life[data-lane="worker#1"]')["x"]

    narrow = gap()
    failed.click("#story li.fault button")
    for _ in range(2):
        failed.press("+")
    assert gap() > narrow * 2
    before = box(failed, "#timeline .glyph.fault")["x"]
    x, y = failed.centre("#timeline")
    failed.mouse("mousePressed", x, y, button="left", clickCount=1)
    failed.mouse("mouseMoved", x - 60, y, button="left", buttons=1)
    failed.mouse("mouseReleased", x - 60, y, button="left", clickCount=1)
    failed.frame()
    assert box(failed, "#timeline .glyph.fault")["x"] == pytest.approx(before - 60, abs=2)
    # To drag is not to click: what was pinned stays.
    assert count(failed, "#detail .title") == 1
    failed.mouse("mouseWheel", x, y, deltaX=0, deltaY=300, modifiers=2)
    failed.frame()
    failed.press("0")
    assert gap() == pytest.approx(narrow, abs=2)
    whole(failed)


def test_the_wheel_alone_scrolls_the_page(failed: Page) -> None:
    x, y = failed.centre("#timeline")
    at = box(failed, "#timeline .glyph.fault")["x"]
    before = failed.js("scrollY")
    failed.mouse("mouseWheel", x, y, deltaX=0, deltaY=200)
    failed.wait(f"scrollY > {before}")
    assert box(failed, "#timeline .glyph.fault")["x"] == pytest.approx(at)


@pytest.mark.parametrize("run", ["pass", "fail", "big"])
def test_the_axis_tells_times_in_order_and_apart(browser: Browser, pages: Mapping[str, str], run: str) -> None:
    page = browser.open(pages[run], width=900)
    for _ in range(6):
        ticks = [float(text) for text in texts(page, "svg .tick")]
        assert ticks == sorted(ticks)
        edges = page.js(
            "[...document.querySelectorAll('svg .tick')].map(e => e.getBoundingClientRect()).map(b => [b.x, b.right])"
        )
        assert all(left[1] <= right[0] for left, right in pairwise(edges))
        page.press("+")


def test_a_long_run_is_cut_and_says_so(browser: Browser, pages: Mapping[str, str]) -> None:
    page = browser.open(pages["big"])
    (note,) = texts(page, "#undrawn")
    assert f"of {RECORDS_MAX + 203} records are not drawn" in note
    assert count(page, "#timeline *") < RECORDS_MAX
    page.press("/")
    page.type("k7")
    assert count(page, "#timeline .glyph.call:not(.dim)") == 1
    whole(page)


@pytest.mark.parametrize("width", [1440, 800, 420])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_every_window_in_both_schemes(
    browser: Browser, pages: Mapping[str, str], width: int, *, dark: bool
) -> None:
    page = browser.open(pages["fail"], width=width, dark=dark)
    assert page.js("document.documentElement.scrollWidth") == width
    light = page.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (light < 60) == dark
    page.size(700, 600)
    page.wait("document.querySelector('#timeline svg').getAttribute('width') <= 700")
    whole(page)


def test_the_command_is_copied_or_selected(failed: Page) -> None:
    failed.click("#copy")
    failed.wait("['Copied', 'Selected'].includes(document.getElementById('copy').textContent)")
    whole(failed)

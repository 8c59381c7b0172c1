"""Any PRD: what is generated from it compiles, is imported, and decides its examples as the PRD's own reading does."""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from generated import DEMO, PRDS
from hypothesis import HealthCheck, Phase, assume, given, settings
from prds_strategy import prds

from meshforge_trio.errors import Misconfigured
from meshforge_trio.factory.generate import RuntimeGenerator
from meshforge_trio.factory.model import Prd
from meshforge_trio.factory.prd import load_prd
from meshforge_trio.factory.profiles import load_profile
from meshforge_trio.factory.proposals import propose
from meshforge_trio.factory.render import render
from meshforge_trio.factory.story import scenes


def generated(prd: Prd, home: Path) -> Path:
    """A workspace."""
    RuntimeGenerator(prd, load_profile("local"), render(prd)).write(home / "shop")
    return home / "shop"


def with_examples(prd: Prd) -> Prd:
    """With an example for each agent whose rules let one pass: hardly any made by chance could be a smoke test."""
    proposed = [example for agent in prd.agents if (example := propose(prd, agent)) is not None]
    return attrs.evolve(prd, examples=(*prd.examples, *proposed))


@contextmanager
def importing(home: Path) -> Iterator[None]:
    """Modules of a workspace can be imported, and are forgotten afterwards."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("agents", "rules")]:
            del sys.modules[name]

    forget()
    sys.path.insert(0, str(home))
    try:
        yield
    finally:
        sys.path.remove(str(home))
        forget()


def accepted(prd: Prd) -> bool:
    """Whether some example could be a smoke test."""
    try:
        return bool(scenes(prd))
    except Misconfigured:
        return False


# What fails is a workspace that can be looked at: making it smaller would take longer than finding it.
@pytest.mark.filterwarnings("ignore:Generating overly large repr:hypothesis.errors.HypothesisWarning")
@settings(
    max_examples=30,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(prds())
def test_any_prd_gives_agents_that_decide_its_examples(prd: Prd) -> None:
    prd = with_examples(prd)
    # Without one there is nothing to smoke-test; were that so of many, hypothesis would complain.
    assume(accepted(prd))
    with tempfile.TemporaryDirectory() as directory:
        home = generated(prd, Path(directory))
        for path in home.rglob("*.py"):
            compile(path.read_text(), str(path), "exec")
        with importing(home):
            tests = runpy.run_path(str(home / "tests/test_acceptance.py"))
            played = [test() for name, test in tests.items() if name.startswith("test_")]
        assert len(played) == len(prd.examples)


@pytest.mark.parametrize("path", PRDS, ids=lambda path: path.stem)
def test_every_prd_that_is_there_decides_its_examples(path: Path, tmp_path: Path) -> None:
    prd = load_prd(path)
    home = generated(prd, tmp_path)
    with importing(home):
        tests = runpy.run_path(str(home / "tests/test_acceptance.py"))
        played = [test() for name, test in tests.items() if name.startswith("test_")]
    assert len(played) == len(prd.examples)


def test_an_agent_that_decides_otherwise_is_found_out(tmp_path: Path) -> None:
    home = generated(load_prd(DEMO), tmp_path)
    agent = home / "agents/inventory.py"
    agent.write_text(agent.read_text().replace("state.stock - event.quantity", "state.stock"))
    with importing(home):
        tests = runpy.run_path(str(home / "tests/test_acceptance.py"))
        with pytest.raises(AssertionError):
            tests["test_an_order_is_put_aside_and"]()

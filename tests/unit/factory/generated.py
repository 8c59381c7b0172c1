"""What tests of the generator stand on: every PRD there is, and workspaces made from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from meshforge_trio.factory.generate import RuntimeGenerator
from meshforge_trio.factory.prd import load_prd
from meshforge_trio.factory.profiles import load_profile

ROOT: Final = Path(__file__).parents[3]
DEMO: Final = ROOT / "examples/multi_agent_demo_prd.md"
PRDS: Final = (DEMO, *sorted((ROOT / "tests/prds").glob("*.md")))


def generator(path: Path = DEMO, profile: str = "local", **toggles: Any) -> RuntimeGenerator:
    chosen = load_profile(profile)
    chosen = attrs.evolve(chosen, toggles=attrs.evolve(chosen.toggles, **toggles))
    return RuntimeGenerator(load_prd(path), chosen, path.read_text())


def texts(made: RuntimeGenerator) -> Mapping[str, str]:
    """The files by their paths."""
    return {file.path: file.text for file in made.files()}

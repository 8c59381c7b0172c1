"""What a planted bug is: a patch, the run that provokes it, and the guarantee that must fall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs

from chaos.case import Case
from chaos.mutants.patch import Edit, Patch

__all__ = ["Mutant", "mutant"]


@attrs.frozen
class Mutant:
    """A mistake that a person could make, and how to see it.

    `rule` is the rule of the protocol it breaks ("" where it breaks the order of the steps itself), `guarantee` the
    one that must fall, `about` what the programmer got wrong. `case` is the run that provokes it, which the protocol
    as it is must pass. `proof` is how it is caught: by that `run`, with its faults; or by the crash images of it, since
    only a loss of `power` shows it.
    """

    name: str
    rule: str
    guarantee: str
    about: str
    patch: Patch
    case: Callable[[], Case] = attrs.field(repr=False)
    proof: Literal["run", "power"] = "run"


def mutant(name: str, rule: str, guarantee: str, about: str, case: Callable[[], Case], *edits: Edit) -> Mutant:
    """A mutant whose patch bears its name."""
    return Mutant(name, rule, guarantee, about, Patch(name, edits), case)

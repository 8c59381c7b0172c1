"""Who may say what to whom."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from doubles import SCOPE, USER, command, event
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.envelope import SecurityContext
from meshforge_trio.security import Violation, as_agent, check
from meshforge_trio.subjects import Address, Scope

HERE = Address("cmd", SCOPE, "add")


def test_what_agrees_and_has_a_principal_comes_in() -> None:
    assert check(HERE, command(1)) is None
    assert check(Address("evt", Scope("t", "w", "source"), "added"), event(1)) is None


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"tenant": "other"}, "scope_mismatch", "other/w/counter"),
        ({"workspace": "other"}, "scope_mismatch", "t/other/counter"),
        ({"agent": "other"}, "scope_mismatch", "t/w/other"),
        ({"action": "take"}, "subject_mismatch", "'take'"),
        ({"security_context": None}, "missing_security_context", "security_context"),
        ({"security_context": SecurityContext("", "user")}, "bad_principal", "principal_id"),
        ({"security_context": SecurityContext("k" * 257, "user")}, "bad_principal", "principal_id"),
        ({"security_context": SecurityContext("kim", "user", "")}, "bad_principal", "on_behalf_of"),
        ({"security_context": SecurityContext("kim", "user", "k" * 257)}, "bad_principal", "on_behalf_of"),
    ],
)
def test_a_violation_says_what_is_wrong(change: dict[str, Any], code: str, named: str) -> None:
    violation = check(HERE, attrs.evolve(command(1), **change))
    assert violation is not None
    assert violation.code == code
    assert named in violation.reason


def test_the_scope_is_looked_at_before_the_principal() -> None:
    stranger = attrs.evolve(command(1), tenant="other", action="take", security_context=None)
    assert check(HERE, stranger) == Violation(
        "scope_mismatch", "envelope names other/w/counter, subject names t/w/counter", None
    )


def test_an_event_is_compared_by_name() -> None:
    violation = check(Address("evt", Scope("t", "w", "source"), "removed"), event(1))
    assert violation is not None
    assert violation.code == "subject_mismatch"


@given(st.text(min_size=257, max_size=2000))
def test_a_claimed_principal_of_any_length_fits_into_the_answer(name: str) -> None:
    violation = check(HERE, command(1, tenant="other", security_context=SecurityContext(name, "user")))
    assert violation is not None
    assert violation.principal_id == name[:256]
    for context in (SecurityContext(name, "user"), SecurityContext("kim", "user", name)):
        assert as_agent("counter", context).on_behalf_of == name[:256]


def test_an_agent_acts_for_whoever_began_the_chain() -> None:
    assert as_agent("a", USER) == SecurityContext("a", "agent", "kim")
    assert as_agent("b", as_agent("a", USER)) == SecurityContext("b", "agent", "kim")
    assert as_agent("a", None) == SecurityContext("a", "agent", None)

"""Who may send what to whom."""

from __future__ import annotations

from typing import get_args

import pytest
from doubles import SCOPE, command, counter, delivery
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.config import load_settings
from meshforge_trio.envelope import PrincipalType, SecurityContext, encode
from meshforge_trio.errors import Misconfigured
from meshforge_trio.intake import Incoming, read_delivery
from meshforge_trio.permissions import EVERYBODY, Permissions, Rule, parse_rule
from meshforge_trio.security import Access, Violation

RULES = [
    "allow user:* -> order.*",
    "deny user:eve -> counter.add",
    "allow user:* -> counter.add",
    "allow agent:order -> counter",
    "allow service:batch-* -> *.get",
    "allow *:root -> *",
]


def context(kind: PrincipalType, who: str) -> SecurityContext:
    return SecurityContext(who, kind)


@pytest.mark.parametrize(
    ("kind", "who", "agent", "action", "allowed"),
    [
        ("user", "kim", "order", "create", True),
        ("user", "kim", "counter", "add", True),
        ("user", "eve", "counter", "add", False),
        ("user", "kim", "counter", "take", False),
        ("agent", "order", "counter", "take", True),
        ("agent", "other", "counter", "take", False),
        ("service", "batch-7", "counter", "get", True),
        ("service", "batch", "counter", "get", False),
        ("service", "batch-7", "counter", "add", False),
        ("service", "root", "counter", "anything", True),
    ],
)
def test_the_first_rule_that_fits_decides(
    kind: PrincipalType, who: str, agent: str, action: str, allowed: bool
) -> None:
    permissions = Permissions.of(RULES)
    for _ in range(2):
        assert permissions.allow(context(kind, who), agent, action) is allowed


def test_without_rules_everybody_may() -> None:
    assert EVERYBODY.allow(context("user", "kim"), "any", "thing")


def test_only_the_star_is_special() -> None:
    """Ids may hold the characters that file patterns give a meaning."""
    permissions = Permissions.of(["allow user:a[bc]?* -> *"])
    assert permissions.allow(context("user", "a[bc]?x"), "order", "create")
    assert not permissions.allow(context("user", "abx"), "order", "create")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "allow",
        "allow kim -> order",
        "permit user:kim -> order",
        "allow user:kim order",
        "allow user: -> order",
        "allow user:kim -> order.create.now",
        "allow person:kim -> order",
        "allow user:kim -> or der",
        "allow user:k im -> a",
    ],
)
def test_what_is_no_rule_is_told(text: str) -> None:
    with pytest.raises(Misconfigured, match="rule"):
        parse_rule(text)


@given(st.text(max_size=60))
def test_rubbish_is_misconfigured_or_a_rule(text: str) -> None:
    try:
        assert isinstance(parse_rule(text), Rule)
    except Misconfigured:
        assert True


@given(
    st.sampled_from(get_args(PrincipalType)),
    st.text(min_size=1, max_size=20),
    st.from_regex(r"[A-Za-z0-9_-]{1,10}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_-]{1,10}", fullmatch=True),
)
def test_what_no_rule_speaks_of_is_forbidden(kind: PrincipalType, who: str, agent: str, action: str) -> None:
    permissions = Permissions.of(["allow user:somebody-else-entirely -> nowhere.nothing"])
    assert not permissions.allow(context(kind, who), agent, action)


def read(action: str, who: SecurityContext, *rules: str) -> Incoming:
    order = command(1, action, security_context=who)
    return read_delivery(
        delivery(f"cmd.t.w.counter.{action}", encode(order)), SCOPE, counter(), Access(Permissions.of(rules))
    )


def test_what_is_forbidden_is_a_violation_that_names_who_and_what() -> None:
    incoming = read("add", context("user", "eve"), *RULES)
    assert incoming.fault == Violation("forbidden", "user:eve may not send counter.add", "eve")
    assert incoming.key.startswith("raw:"), "it does not occupy the key it claims"
    assert read("add", context("user", "kim"), *RULES).fault is None


def test_no_rule_gives_away_what_is_the_systems() -> None:
    incoming = read("sys_redrive", context("user", "root"), "allow *:* -> *")
    assert isinstance(incoming.fault, Violation)
    assert incoming.fault.code == "not_system"
    assert read("sys_redrive", context("system", "kim"), "deny *:* -> *").fault is None


def test_a_wrong_rule_of_the_settings_is_told() -> None:
    with pytest.raises(Misconfigured, match=r"rule .* is not .*allow user"):
        load_settings(environ={}, flags={"permissions": ["allow everybody"]})
    assert load_settings(environ={}, flags={"permissions": RULES}).permissions == tuple(RULES)

"""Subjects, streams and consumer names: built and parsed in one place, so tested in one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.errors import Poison
from meshforge_trio.subjects import (
    Address,
    Scope,
    check_token,
    command_filter,
    command_subject,
    consumer_name,
    event_filter,
    event_subject,
    failed_subject,
    is_token,
    parse_subject,
    violation_subject,
)

TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Names whose parts are easily taken for parts of another.
tricky = st.text("_0123456789ab", min_size=1, max_size=6)
tokens = st.one_of(st.from_regex(TOKEN, fullmatch=True), tricky)
agents = tokens.filter(lambda name: name not in ("lock", "security"))
scopes = st.builds(Scope, tokens, tokens, agents)
bad_tokens = st.one_of(
    st.sampled_from(["", "*", ">", "a*b", "a.b", "a b", "a\0b", "a\n", "a" * 65, "é", "\udcff", "a\r\nPUB x"]),
    st.text(max_size=80).filter(lambda text: TOKEN.fullmatch(text) is None),
)


@given(scopes, tokens)
def test_what_is_built_is_parsed_back(scope: Scope, verb: str) -> None:
    assert parse_subject(command_subject(scope, verb)) == Address("cmd", scope, verb)
    assert parse_subject(event_subject(scope, verb)) == Address("evt", scope, verb)


@given(tokens, tokens, tokens)
def test_the_lock_manager_is_the_only_agent_with_another_token(tenant: str, workspace: str, verb: str) -> None:
    scope = Scope(tenant, workspace, "sys_lock_manager")
    assert command_subject(scope, verb) == f"cmd.{tenant}.{workspace}.lock.{verb}"
    assert event_subject(scope, verb) == f"evt.{tenant}.{workspace}.lock.{verb}"
    assert parse_subject(event_subject(scope, verb)).scope == scope
    assert Scope.checked(tenant, workspace, "sys_lock_manager") == scope


@pytest.mark.parametrize("agent", ["lock", "security"])
def test_names_that_would_take_somebody_elses_subjects_are_reserved(agent: str) -> None:
    with pytest.raises(Poison, match="reserved") as caught:
        Scope.checked("t", "w", agent)
    assert (caught.value.code, caught.value.field) == ("reserved_agent", "agent")


@given(bad_tokens)
def test_no_token_no_entry(text: str) -> None:
    assert not is_token(text)
    with pytest.raises(Poison) as caught:
        check_token(text, "tenant")
    assert (caught.value.code, caught.value.field) == ("bad_token", "tenant")
    for place, field in enumerate(("tenant", "workspace", "agent")):
        parts = ["t", "w", "a"]
        parts[place] = text
        with pytest.raises(Poison) as caught:
            Scope.checked(*parts)
        assert caught.value.field == field


@given(bad_tokens, st.integers(1, 4), st.sampled_from(["cmd", "evt"]))
def test_a_subject_with_a_bad_token_is_refused(text: str, place: int, kind: str) -> None:
    parts = [kind, "t", "w", "a", "do"]
    parts[place] = text
    with pytest.raises(Poison) as caught:
        parse_subject(".".join(parts))
    assert caught.value.code in ("bad_token", "bad_subject")
    assert caught.value.field is not None
    assert caught.value.field.startswith("subject")


@given(st.one_of(st.text(max_size=60), st.lists(tokens, max_size=8).map(".".join)))
def test_parsing_raises_poison_or_gives_back_what_was_parsed(text: str) -> None:
    try:
        address = parse_subject(text)
    except Poison:
        return
    build = command_subject if address.kind == "cmd" else event_subject
    assert build(address.scope, address.verb) == text


@pytest.mark.parametrize("value", [None, 5, b"a"])
def test_what_is_no_text_is_no_token(value: object) -> None:
    assert not is_token(value)
    with pytest.raises(Poison, match="is not a subject token"):
        check_token(value, "agent")


@given(scopes, scopes)
def test_consumer_names_of_two_scopes_never_collide(one: Scope, other: Scope) -> None:
    assert (consumer_name(one) == consumer_name(other)) == (one == other)


@given(st.text("_019", min_size=1, max_size=8))
def test_consumer_names_survive_the_same_letters_cut_elsewhere(letters: str) -> None:
    """`a_b` + `c` and `a` + `b_c` join to the same text; what stands before it must tell them apart."""
    text = f"{letters}_x_y_z"
    cuts = [i for i, letter in enumerate(text) if letter == "_" and 0 < i < len(text) - 1]
    scopes_of_text = {
        Scope(text[:i], text[i + 1 : j], text[j + 1 :]) for i in cuts for j in cuts if i + 1 < j < len(text) - 1
    }
    assert len({consumer_name(scope) for scope in scopes_of_text}) == len(scopes_of_text) > 0


@given(scopes)
def test_consumer_names_are_names_the_server_takes(scope: Scope) -> None:
    name = consumer_name(scope)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
    assert name.endswith(f"{scope.agent}_consumer")
    # The server stores consumers in directories of their names.
    assert len(name) <= 255


@given(scopes, tokens)
def test_filters_take_the_own_scope_and_no_other(scope: Scope, verb: str) -> None:
    assert command_subject(scope, verb).startswith(command_filter(scope).removesuffix(">"))
    assert event_subject(scope, verb).startswith(event_filter(scope).removesuffix(">"))
    assert command_filter(scope).count(".") == 4


def test_violations_and_dead_letters() -> None:
    assert violation_subject("t", "w") == "evt.t.w.security.violation"
    assert failed_subject("cmd.t.w.a.do") == "failed.cmd.t.w.a.do"


@given(scopes, tokens)
def test_a_dead_letter_keeps_a_good_subject_whole(scope: Scope, verb: str) -> None:
    for subject in (command_subject(scope, verb), event_subject(scope, verb)):
        assert failed_subject(subject) == f"failed.{subject}"


@given(scopes, st.text(max_size=700))
def test_a_dead_letter_of_any_subject_can_be_sent(scope: Scope, verb: str) -> None:
    """The server stores commands under subjects that no client would send; their dead letters must go out."""
    subject = failed_subject(command_subject(scope, verb))
    assert re.fullmatch(r"[\x21-\x7e]{1,600}", subject)
    assert not subject.endswith(".")
    assert subject.startswith(f"failed.cmd.{scope.tenant}.{scope.workspace}.")

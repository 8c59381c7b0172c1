"""Plans: what is written is what is read, and what cannot be run is refused where it stands."""

from __future__ import annotations

import pickle
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.plan import (
    ALLOWED,
    FRAMES,
    Plan,
    PlanError,
    Rule,
    check_plan,
    kill_at,
    kinds_at,
    parse_plan,
    plan_from_json,
    plan_to_json,
)
from chaos.rules import flaws
from meshforge_trio.points import Point

EXAMPLE = "worker#1:after_store@2=kill; nats:worker#2.in_recovery@1=restart; proxy:puback@3=swallow"
COPY = "nats:after_ack@1=copy"


def kept(rules: list[Rule]) -> Plan:
    """As many of the rules, from the first on, as make a plan that can be run."""
    plan = Plan()
    for rule in rules:
        longer = Plan((*plan.rules, rule))
        try:
            check_plan(longer)
        except PlanError:
            continue
        plan = longer
    return plan


@st.composite
def some_rule(draw: st.DrawFn) -> Rule:
    actor = draw(st.sampled_from(list(ALLOWED)))
    action = draw(st.sampled_from(list(ALLOWED[actor])))
    kind = ALLOWED[actor][action]
    wanted = {"must": st.just(True), "may": st.booleans(), "never": st.just(False)}[kind.seconds]
    return Rule(
        actor,
        0 if actor == "proxy" else draw(st.integers(1, 3)),
        draw(st.sampled_from(kind.places)),
        draw(st.integers(1, 30) | st.integers(1, 999_999_999)),
        action,
        draw(st.floats(0.0, 60.0, exclude_min=True, allow_subnormal=False)) if draw(wanted) else None,
    )


#: So that what needs another rule before it comes up often enough.
_FIRST = [
    [],
    list(parse_plan(COPY).rules),
    list(parse_plan("worker#1:after_ack@7=stop; worker#2:after_ack@7=kill").rules),
]
plans = st.builds(
    lambda first, rules: kept([*first, *rules]), st.sampled_from(_FIRST), st.lists(some_rule(), max_size=9)
)


# -- text and JSON -------------------------------------------------------------------------------------------------


@given(plans)
def test_what_is_written_is_what_is_read(plan: Plan) -> None:
    assert parse_plan(str(plan)) == plan
    assert hash(parse_plan(str(plan))) == hash(plan)
    spaced = str(plan).replace("; ", " ;\t")
    assert parse_plan(f"  {spaced} ") == plan


@given(plans)
def test_json_is_the_same_plan(plan: Plan) -> None:
    assert plan_from_json(orjson.loads(orjson.dumps(plan_to_json(plan)))) == plan


def test_the_plans_that_are_made_up_hold_every_action() -> None:
    """The two tests above would pass on empty plans."""
    some: set[Rule] = set()

    @settings(max_examples=300, derandomize=True)
    @given(plans)
    def look(plan: Plan) -> None:
        some.update(plan.rules)

    look()
    assert {rule.number for rule in some} == {0, 1, 2, 3}
    assert {(rule.actor, rule.action) for rule in some} == {
        (actor, action) for actor, kinds in ALLOWED.items() for action in kinds
    }


def test_an_example() -> None:
    plan = parse_plan(EXAMPLE)
    assert plan.rules == (
        Rule("worker", 1, "after_store", 2, "kill"),
        Rule("nats", 2, "in_recovery", 1, "restart"),
        Rule("proxy", 0, "puback", 3, "swallow"),
    )
    assert str(plan) == EXAMPLE
    assert [str(rule) for rule in plan.of("nats")] == ["nats:worker#2.in_recovery@1=restart"]
    assert [str(rule) for rule in plan.of_worker(1)] == ["worker#1:after_store@2=kill"]
    assert plan.of_worker(2) == plan.of("nats")
    assert plan.of_worker(0) == ()
    assert plan.workers == 2
    assert plan_to_json(plan)["rules"][1] == {
        "actor": "nats",
        "worker": 2,
        "at": "in_recovery",
        "nth": 1,
        "action": "restart",
        "seconds": None,
    }


def test_no_faults() -> None:
    assert parse_plan("") == parse_plan(" \n") == Plan() == plan_from_json({"version": 1, "rules": []})
    assert str(Plan()) == ""
    assert Plan().workers == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nats:worker#1.after_ack@1=copy", "nats:after_ack@1=copy"),
        ("client:worker#01.after_ack@01=resend", "client:after_ack@1=resend"),
        ("worker#1:after_ack@1=kill(02.50)", "worker#1:after_ack@1=kill(2.5)"),
        ("worker#1:after_ack@1=kill(.5)", "worker#1:after_ack@1=kill(0.5)"),
        ("worker#1:after_ack@1=kill(6e1)", "worker#1:after_ack@1=kill(60)"),
        ("worker#1:after_ack@1=kill(0.123456789)", "worker#1:after_ack@1=kill(0.123457)"),
        ("\nworker#1:after_ack@1=stop ;\n worker#2:after_ack@1=kill\n", None),
    ],
)
def test_one_plan_has_one_canonical_text(text: str, canonical: str | None) -> None:
    assert str(parse_plan(text)) == (canonical or "worker#1:after_ack@1=stop; worker#2:after_ack@1=kill")


def test_a_rule_put_together_is_the_rule_that_is_read() -> None:
    rule = kill_at(Point.AFTER_STORE, 2, action="full", seconds=1)
    assert type(rule.place) is str
    assert (rule.actor, rule.number, rule.seconds) == ("worker", 1, 1.0)
    assert Plan([kill_at(Point.AFTER_STORE, 2, 1, seconds=1)]) == parse_plan("worker#1:after_store@2=kill(1)")


def test_what_a_worker_may_do_at_a_point() -> None:
    assert kinds_at("after_store") == ("kill", "stop")
    assert kinds_at(Point.IN_STORE) == ("kill", "full", "eio_write", "eio_sync")
    assert kinds_at("before_hold") == ("kill", "stop", "full", "eio_read", "eio_write", "eio_sync")
    assert kinds_at("after_lease") == ("kill", "stop", "lock", "unlink", "replace")
    with pytest.raises(ValueError, match="puback"):
        kinds_at("puback")


def test_the_table_names_what_exists() -> None:
    places = {*Point, *FRAMES}
    for kinds in ALLOWED.values():
        for kind in kinds.values():
            assert kind.means
            assert set(kind.places) <= places
            assert kind.limit or set(kind.places) in (set(Point), set(FRAMES))


def test_agents_that_end_their_own_process_need_no_rule_for_it() -> None:
    text = "worker#3:after_store@1=kill"
    assert str(parse_plan(text, mortal=True)) == text
    plan = Plan([kill_at("after_store", 1, 3)])
    check_plan(plan, True)
    assert plan_from_json(plan_to_json(plan), mortal=True) == plan
    for refuse in (lambda: parse_plan(text), lambda: check_plan(plan), lambda: plan_from_json(plan_to_json(plan))):
        with pytest.raises(PlanError, match="worker#1"):
            refuse()
    with pytest.raises(PlanError, match="12 workers"):
        parse_plan("worker#13:after_store@1=kill", mortal=True)


def test_a_plan_put_together_is_checked_in_its_canonical_text() -> None:
    plan = Plan([kill_at("after_store", 1), Rule("nats", 2, "after_stroe", 1, "kill")])
    with pytest.raises(PlanError) as caught:
        check_plan(plan)
    assert str(plan)[caught.value.column - 1 :].startswith("after_stroe")
    twice = kill_at("after_store", 1)
    for rules, token in (
        ([twice, twice], "worker#1:after_store@1=kill"),
        ([Rule("proxy", 1, "ack", 1, "swallow")], "proxy"),
        ([Rule("worker", 1, "after_store", 1, "kill", float("nan"))], "nan"),
        ([Rule("nats", 1, "after_store", 1, "pause")], "pause"),
        ([Rule("nats", 0, "after_store", 1, "pause", 10**400)], "0.after_store"),
        ([Rule("zebra", 1, "after_store", 1, "kill")], "zebra"),
    ):
        with pytest.raises(PlanError) as caught:
            check_plan(Plan(rules))
        assert caught.value.column == str(Plan(rules)).rindex(token) + 1


def test_all_that_is_wrong_can_be_listed() -> None:
    rules = [
        Rule("zebra", 0, "nowhere", 0, "bite"),
        Rule("worker", 0, "nowhere", 0, "bite", 5),
        Rule("nats", 13, "in_store", 1, "pause", 61),
        Rule("worker", 1, "after_ack", 1, "kill"),
    ]
    found = [(flaw.index, flaw.field) for flaw in flaws(rules, False) if flaw.index < 2 or flaw.field != "worker"]
    assert found == [(0, "actor"), (1, "worker"), (1, "at"), (1, "nth"), (1, "action"), (2, "at"), (2, "seconds")]


def test_the_caret_stands_under_the_column_whatever_the_text_holds() -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan("\n\tworker#1:\x1b[2Jafter@1=kill")
    _, shown, caret = str(caught.value).split("\n")
    assert shown == "    worker#1: [2Jafter@1=kill"
    assert shown[caret.index("^") :].startswith(" [2J")


def test_an_error_can_be_sent_to_another_process() -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan("worker")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason, again.column) == (str(caught.value), caught.value.reason, caught.value.column)


# -- rubbish -------------------------------------------------------------------------------------------------------

_WORDS = ["worker", "nats", "client", "proxy", "#1", "#2", ":", "@1", "=", "kill", "stop", "(", ")", "2", ";", "."]
near = st.lists(st.sampled_from([*_WORDS, "after_store", "in_store", "ack", " "]) | st.text(max_size=2)).map("".join)


@st.composite
def mangled(draw: st.DrawFn, text: str) -> str:
    """The text with a few characters cut out and something else put in."""
    start = draw(st.integers(0, len(text)))
    return text[:start] + draw(st.text(max_size=3)) + text[start + draw(st.integers(0, 5)) :]


@given(st.text() | near | plans.flatmap(lambda plan: mangled(str(plan))))
def test_rubbish_is_refused_inside_the_text(text: str) -> None:
    refusal, plan = None, Plan()
    try:
        plan = parse_plan(text)
    except PlanError as error:
        refusal = error
    if refusal is None:
        assert parse_plan(str(plan)) == plan
    else:
        assert 1 <= refusal.column <= len(text) + 1
        assert "\n" not in refusal.reason


RULE: dict[str, Any] = {
    "actor": "worker",
    "worker": 1,
    "at": "after_ack",
    "nth": 1,
    "action": "kill",
    "seconds": None,
}


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([1, "kill", "worker", "ack"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RULE, "version", "x"]), inner),
    max_leaves=10,
)


@given(json, st.sampled_from(["whole", "rules", "rule", *RULE]))
def test_rubbish_json_is_refused(rubbish: Any, where: str) -> None:
    rule = {**RULE, where: rubbish} if where in RULE else rubbish
    rules = rubbish if where == "rules" else [rule]
    value = rubbish if where == "whole" else {"version": 1, "rules": rules}
    refusal, plan = None, Plan()
    try:
        plan = plan_from_json(value)
    except PlanError as error:
        refusal = str(error)
    if refusal is None:
        assert plan_from_json(plan_to_json(plan)) == plan
    else:
        assert "\n" not in refusal

"""What is refused of a plan, and where; and what only just is not."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.plan import PlanError, parse_plan, plan_from_json
from meshforge_trio.points import Point

LATER = "worker#1:after_store@1=kill; "
COPY = "nats:after_ack@1=copy"

#: (text, the token at fault, what the reason says). The last occurrence of the token is meant.
REFUSED = [
    # grammar
    (";", ";", "expected an actor"),
    ("#1:after_ack@1=kill", "#1", "expected an actor"),
    ("worker#1:after_ack@1=kill;", None, "expected an actor"),
    ("worker#1:after_ack@1=kill;; worker#1:after_ack@2=kill", "; worker", "expected an actor"),
    ("worker:after_ack@1=kill", ":after", "expected the number of the worker"),
    ("worker#:after_ack@1=kill", ":after", "expected the number of the worker"),
    ("worker#x:after_ack@1=kill", "x", "expected the number of the worker"),
    ("worker#1 :after_ack@1=kill", " :after", "expected a colon and then a point"),
    ("nats#2:after_ack@1=kill", "#2", "expected a colon and then a point"),
    ("proxy", None, "expected a colon and then a frame"),
    ("proxy:", None, "expected a frame"),
    ("worker#1:@1=kill", "@1", "expected a point"),
    ("nats:worker#.after_ack@1=kill", ".after", "expected the number of the worker"),
    ("nats:worker#2:after_ack@1=kill", ":after", "expected a dot and then a point"),
    ("worker#1:after_ack=kill", "=kill", "expected @ and then which time"),
    ("worker#1:after_ack@=kill", "=kill", "expected which time"),
    ("worker#1:after_ack@two=kill", "two", "expected which time"),
    ("worker#1:after_ack@\N{THAI DIGIT ONE}=kill", "\N{THAI DIGIT ONE}", "expected which time"),
    ("worker#1:after_ack@1", None, "expected = and then an action"),
    ("worker#1:after_ack@1=", None, "expected an action: kill, stop, full"),
    ("worker#1:after_ack@1=kill()", ")", "expected a number of seconds"),
    ("worker#1:after_ack@1=kill(soon)", "soon", "expected a number of seconds"),
    ("worker#1:after_ack@1=kill(nan)", "nan", "expected a number of seconds"),
    ("worker#1:after_ack@1=kill(1s)", "s)", "expected a closing parenthesis"),
    ("worker#1:after_ack@1=kill(1_0)", "_0", "expected a closing parenthesis"),
    ("worker#1:after_ack@1=kill(1", None, "expected a closing parenthesis"),
    ("worker#1:after_ack@1=kill kill", "kill", "expected ; and another rule, or the end"),
    ("worker#1:after_ack@1=kill, worker#1:after_ack@2=kill", "kill,", "no action of worker 'kill,'"),
    # names
    ("wroker#1:after_ack@1=kill", "wroker", "no actor 'wroker' (did you mean worker?); there are: worker, nats, "),
    ("Worker#1:after_ack@1=kill", "Worker", "(did you mean worker?)"),
    ("zebra", "zebra", "no actor 'zebra'; there are: worker, nats, client, proxy"),
    ("worker#1:afterstore@1=kill", "afterstore", "no point 'afterstore' (did you mean after_store?); there are: "),
    ("worker#1:puback@1=kill", "puback", "no point 'puback'"),
    ("proxy:pubback@1=swallow", "pubback", "no frame 'pubback' (did you mean puback?); there are: publish, puback, "),
    ("proxy:after_ack@1=swallow", "after_ack", "no frame 'after_ack'"),
    ("worker#1:after_ack@1=kil", "kil", "no action of worker 'kil' (did you mean kill?); there are: kill, stop, full"),
    ("nats:after_ack@1=explode", "explode", "no action of nats 'explode'; there are: kill, restart, pause, copy"),
    # an action of somebody else
    ("worker#1:after_ack@1=pause(1)", "pause", "pause is no action of worker but of nats; there are: kill, stop, full"),
    ("nats:after_ack@1=stop", "stop", "stop is no action of nats but of worker"),
    ("client:after_ack@1=kill", "kill", "kill is no action of client but of worker, nats; there are: resend"),
    ("proxy:ack@1=kill", "kill", "kill is no action of proxy but of worker, nats"),
    # seconds
    ("worker#1:before_store@1=full", "full", "full needs its seconds, as in full(0.5)"),
    ("nats:after_ack@1=pause", "pause", "pause needs its seconds"),
    ("nats:after_ack@1=restart(2)", "2", "restart takes no seconds"),
    ("proxy:ack@1=swallow(2.5)", "2.5", "swallow takes no seconds"),
    ("client:after_ack@1=resend(2)", "2", "resend takes no seconds"),
    ("worker#1:after_ack@1=kill(0)", "0", "seconds must be above 0"),
    ("worker#1:after_ack@1=kill(1e-999)", "1e-999", "seconds must be above 0"),
    ("worker#1:after_ack@1=kill(-1)", "-1", "seconds must be above 0"),
    ("worker#1:after_ack@1=kill(60.1)", "60.1", "seconds must be 60 at most"),
    ("worker#1:after_ack@1=kill(1e999)", "1e999", "seconds must be 60 at most"),
    # numbers
    ("worker#1:after_ack@0=kill", "0", "nth counts from 1, so this can never fire"),
    ("worker#1:after_ack@-1=kill", "-1", "nth counts from 1, so this can never fire"),
    ("worker#1:after_ack@1000000000=kill", "1000000000", "nth is 999999999 at most"),
    (f"worker#1:after_ack@{'9' * 5000}=kill", "9" * 5000, "nth is 999999999 at most"),
    ("worker#0:after_ack@1=kill", "0", "workers count from 1, so this can never fire"),
    ("nats:worker#-2.after_ack@1=kill", "-2", "workers count from 1, so this can never fire"),
    ("worker#13:after_ack@1=kill", "13", "a run has 12 workers at most"),
    (f"client:worker#{'9' * 5000}.after_ack@1=resend", "9" * 5000, "a run has 12 workers at most"),
    # places
    ("worker#1:in_store@1=stop", "in_store", "worker stop may not stand at in_store: a process that is stopped"),
    ("worker#1:in_store@1=stop(1)", "in_store", "keeps the database locked"),
    ("nats:in_store@1=pause(1)", "in_store", "nats pause may not stand at in_store"),
    ("nats:in_store@1=kill", "in_store", "keeps the database locked"),
    ("client:in_store@1=resend", "in_store", "client resend may not stand at in_store"),
    ("worker#1:before_store@1=lock", "lock", "lock needs its seconds, as in lock(0.5)"),
    ("worker#1:before_store@1=eio_write(2)", "2", "eio_write takes no seconds"),
    ("nats:after_store@1=limit", "limit", "limit needs its seconds"),
    ("nats:after_store@1=truncate(1)", "1)", "truncate takes no seconds"),
    ("nats:after_ack@1=unlink", "unlink", "unlink is no action of nats but of worker"),
    ("worker#1:after_store@1=eio_sync", "after_store", "no transaction follows; it may at before_store, in_store, "),
    ("worker#1:in_store@1=eio_read", "in_store", "worker eio_read may not stand at in_store"),
    ("worker#1:after_ack@1=lock(1)", "after_ack", "may at after_lease, before_store, before_mark"),
    ("nats:received@1=flip", "received", "it may at after_lease, before_store, after_store, after_ack"),
    ("nats:before_mark@1=full(1)", "before_mark", "it may at after_lease, before_store, after_store, in_publish"),
    ("worker#1:after_store@1=full(1)", "after_store", "no transaction follows; it may at before_store, in_store, "),
    # rules that can never fire
    (LATER + "worker#1:after_store@1=kill", "worker#1:", "same trigger"),
    (LATER + "worker#1:after_store@1=stop(1)", "worker#1:", "worker#1:after_store@1=kill has the same trigger"),
    ("proxy:ack@1=swallow; proxy:ack@1=cut_after", "proxy:ack@1=cut", "proxy:ack@1=swallow has the same trigger"),
    ("nats:after_ack@1=kill; nats:worker#1.after_ack@1=restart", "nats:worker", "same trigger"),
    (LATER + "worker#1:after_store@2=kill", "2", "worker#1 is dead by then of worker#1:after_store@1=kill"),
    ("worker#1:after_store@2=stop; " + LATER[:-2], "2=stop", "worker#1 is dead by then"),
    ("worker#1:after_store@3=kill; " + LATER[:-2], "3=kill", "worker#1 is dead by then of worker#1:after_store@1=kill"),
    (LATER + "nats:after_store@2=restart", "2", "worker#1 is dead by then"),
    (LATER + "client:worker#1.after_store@3=resend", "3", "worker#1 is dead by then"),
    (
        "worker#2:after_store@1=kill",
        "2:",
        "no rule ends worker#1 (kill, eio_read, eio_write, eio_sync, unlink, replace) or replaces it (stop ",
    ),
    ("worker#1:after_store@1=stop(2); worker#2:after_store@1=kill", "2:after", "no rule ends worker#1"),
    ("worker#1:before_store@1=full(2); worker#2:after_store@1=kill", "2:after", "no rule ends worker#1"),
    ("worker#1:before_store@1=lock(2); worker#2:after_store@1=kill", "2:after", "no rule ends worker#1"),
    ("nats:after_store@1=kill; nats:worker#2.after_store@1=kill", "2.after", "no rule ends worker#1"),
    (LATER + "worker#3:after_store@1=kill", "3:", "no rule ends worker#2"),
    ("nats:after_ack@1=rollback", "rollback", "there is no copy to put back"),
    ("nats:after_ack@3=rollback; " + COPY, "rollback; ", "there is no copy to put back"),
]


@pytest.mark.parametrize(("text", "token", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_refused_and_where(text: str, token: str | None, reason: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(text)
    column = len(text) + 1 if token is None else text.rindex(token) + 1
    assert reason in caught.value.reason
    assert caught.value.column == column
    assert "\n" not in caught.value.reason
    first, shown, caret = str(caught.value).split("\n")
    assert first == caught.value.reason
    assert shown == f"  {text}"
    assert caret.index("^") == len("  ") + column - 1
    assert caret.endswith(f"^ column {column}")


@pytest.mark.parametrize(
    "text",
    [
        # near misses of the above
        "worker#1:after_ack@1=kill(60)",
        "worker#1:after_ack@999999999=kill",
        "worker#1:in_store@1=kill; worker#2:in_store@1=full(1)",
        "worker#1:after_store@2=kill; worker#1:after_store@1=stop(1)",
        "worker#1:after_store@1=stop; worker#1:after_store@2=kill",
        "worker#1:after_store@1=kill; worker#2:after_store@2=kill",
        "worker#1:after_store@1=kill; worker#1:before_store@2=full(1)",
        "worker#1:before_store@1=eio_write; worker#2:before_store@1=eio_read; worker#3:before_mark@1=eio_sync",
        "worker#1:before_store@1=unlink; worker#2:after_lease@1=replace; worker#3:after_lease@1=kill",
        "nats:after_store@1=truncate; nats:after_store@2=flip; nats:after_store@3=rot",
        "worker#1:after_store@1=kill; nats:after_store@1=restart; client:after_store@1=resend",
        "worker#1:after_store@1=stop; worker#2:after_store@1=kill; worker#3:after_store@1=kill",
        "nats:after_ack@1=copy; nats:after_ack@2=rollback; nats:after_ack@3=rollback",
        "nats:after_ack@9=copy; nats:after_ack@2=rollback",
        "proxy:ack@1=swallow; proxy:nak@1=swallow; proxy:ack@2=swallow",
        "; ".join(f"worker#{number}:after_ack@1=kill" for number in range(1, 13)),
        *(f"client:{point}@1=resend" for point in Point if point != "in_store"),
        *(f"worker#1:{point}@1=kill" for point in Point),
    ],
)
def test_what_is_not_refused(text: str) -> None:
    assert str(parse_plan(text)) == text


RULE: dict[str, Any] = {
    "actor": "worker",
    "worker": 1,
    "at": "after_ack",
    "nth": 1,
    "action": "kill",
    "seconds": None,
}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "a plan is an object with version and rules"),
        ([], "a plan is an object with version and rules"),
        ({}, "version: is missing"),
        ({"version": 1}, "rules: is missing"),
        ({"version": 1, "rules": [], "rulez": []}, "rulez: there is no such field; there are: version, rules"),
        ({"version": 1, "rules": [], "a\nb": []}, "'a\\nb': there is no such field"),
        ({"version": 2, "rules": [], "since": 2}, "version: the plan is of version 2, this reads up to 1"),
        ({"version": 2}, "version: the plan is of version 2, this reads up to 1"),
        ({"version": 0, "rules": []}, "version: must be 1, not 0"),
        ({"version": True, "rules": []}, "version: must be 1, not True"),
        ({"version": "1", "rules": []}, "version: must be 1, not '1'"),
        ({"version": 1, "rules": {}}, "rules: must be a list, not dict"),
        ({"version": 1, "rules": [RULE, "x"]}, "rules[1]: must be an object, not str"),
        *(
            ({"version": 1, "rules": [{k: v for k, v in RULE.items() if k != field}]}, f"rules[0].{field}: is missing")
            for field in RULE
        ),
        ({"version": 1, "rules": [{**RULE, "often": 1}]}, "rules[0].often: there is no such field; there are: actor, "),
        ({"version": 1, "rules": [{**RULE, "actor": 1}]}, "rules[0].actor: must be str, not int"),
        ({"version": 1, "rules": [{**RULE, "worker": "1"}]}, "rules[0].worker: must be int, not str"),
        ({"version": 1, "rules": [{**RULE, "worker": None}]}, "rules[0].worker: must be int, not NoneType"),
        ({"version": 1, "rules": [{**RULE, "at": None}]}, "rules[0].at: must be str, not NoneType"),
        ({"version": 1, "rules": [{**RULE, "nth": True}]}, "rules[0].nth: must be int, not bool"),
        ({"version": 1, "rules": [{**RULE, "nth": 1.0}]}, "rules[0].nth: must be int, not float"),
        ({"version": 1, "rules": [{**RULE, "action": ["kill"]}]}, "rules[0].action: must be str, not list"),
        ({"version": 1, "rules": [{**RULE, "seconds": "2"}]}, "rules[0].seconds: must be int or float or null, not "),
        ({"version": 1, "rules": [{**RULE, "seconds": False}]}, "rules[0].seconds: must be int or float or null, not "),
        # the same checks as of the text
        ({"version": 1, "rules": [{**RULE, "actor": "wroker"}]}, "rules[0].actor: no actor 'wroker' (did you mean "),
        ({"version": 1, "rules": [{**RULE, "worker": 0}]}, "rules[0].worker: workers count from 1"),
        ({"version": 1, "rules": [RULE, {**RULE, "at": "ack"}]}, "rules[1].at: no point 'ack'"),
        ({"version": 1, "rules": [{**RULE, "at": "a\nb"}]}, "rules[0].at: no point 'a\\nb'"),
        ({"version": 1, "rules": [{**RULE, "nth": 2**63}]}, "rules[0].nth: nth is 999999999 at most"),
        ({"version": 1, "rules": [{**RULE, "action": "pause"}]}, "rules[0].action: pause is no action of worker"),
        ({"version": 1, "rules": [{**RULE, "seconds": 10**400}]}, "rules[0].seconds: seconds must be 60 at most"),
        ({"version": 1, "rules": [{**RULE, "seconds": -0.0}]}, "rules[0].seconds: seconds must be above 0"),
        ({"version": 1, "rules": [{**RULE, "actor": "proxy", "at": "ack"}]}, "rules[0].worker: a rule of the proxy"),
        ({"version": 1, "rules": [RULE, RULE]}, "rules[1].actor: worker#1:after_ack@1=kill has the same trigger"),
        ({"version": 1, "rules": [{**RULE, "worker": 2}]}, "rules[0].worker: no rule ends worker#1"),
    ],
    ids=lambda value: str(value)[:70],
)
def test_json_that_is_refused(value: object, reason: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_json(value)
    assert str(caught.value) == caught.value.reason
    assert caught.value.reason.startswith(reason)
    assert "\n" not in caught.value.reason
    assert caught.value.column == 1

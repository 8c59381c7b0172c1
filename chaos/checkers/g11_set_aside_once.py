"""G11: poison goes to the dead-letter stream once, after the limit, alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chaos.checkers.base import Checker, Finding
from chaos.evidence import Evidence, envelope_of


def look(evidence: Evidence) -> Iterator[Finding | int]:
    letters = Counter(
        (message.subject, str(envelope_of(message).get("key")), envelope_of(message).get("generation"))
        for message in evidence.failed
    )
    for (subject, key, generation), count in letters.items():
        yield 1
        if count > 1:
            yield Finding(f"{subject} key {key!r} generation {generation} was dead-lettered {count} times")
    doomed = {sent.key for sent in evidence.sent if "dead" in sent.expect}
    spared = {sent.key for sent in evidence.sent if sent.expect and "dead" not in sent.expect}
    for record in evidence.rows.keys:
        if record.outcome == "dead" and record.key in spared:
            yield Finding(f"{record.scope} key {record.key!r} is dead, though nothing was wrong with it")
        if record.outcome == "decided" and record.key in doomed:
            yield Finding(f"{record.scope} key {record.key!r} is poison and was decided")
    if evidence.limit:
        for key, calls in evidence.calls.items():
            yield 1
            if calls > evidence.limit:
                yield Finding(f"the handler of key {key!r} was called {calls} times, the limit is {evidence.limit}")
            # Each kill may have fallen between counting a call and making it.
            elif evidence.final and key in doomed and calls < evidence.limit - 1 - evidence.kills:
                yield Finding(f"key {key!r} was given up after {calls} calls, the limit is {evidence.limit}")


CHECKER = Checker(
    "G11",
    "Set aside once: a poison command reaches the dead-letter stream exactly once, after the limit, and blocks no "
    "other entity.",
    look,
)

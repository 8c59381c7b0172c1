"""What is answered: duplicates (R4), queries (R9), and the ids of answers (R10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.mutants.catalogue import grounds
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit

__all__ = ["MUTANTS"]

_DRAFTS: Final = "meshforge_trio.drafts"
_PLAN: Final = "meshforge_trio.plan"
_PROTOCOL: Final = "meshforge_trio.protocol"

MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "duplicate-published",
        "R4",
        "G4",
        "Answers a duplicate by publishing the first outcome once more: beyond the window the stream keeps both.",
        grounds.down_beyond_the_window,
        Edit(
            "meshforge_trio.broker.jetstream",
            '{**m.headers, "Nats-Expected-Stream": _NO_STREAM}',
            "m.headers",
        ),
    ),
    mutant(
        "duplicate-silent",
        "R4",
        "G8",
        "ACKs a duplicate and says nothing: whoever asks again waits for ever.",
        grounds.sent_again,
        Edit(
            _PROTOCOL,
            "        session.broker.echo([*plan.echoes, *plan.answers])\n",
            "        session.broker.echo(plan.answers)\n",
        ),
    ),
    mutant(
        "mismatch-ignored",
        "R4",
        "G1",
        "Takes whatever comes under a known key for the same command, and ACKs another one unread.",
        grounds.refusals,
        Edit(
            "meshforge_trio.decide",
            '        if first not in (b"", incoming.hash) and not self._drafter.may_stand_for(first, incoming):\n'
            "            return self._mismatch(incoming)\n",
            "",
        ),
    ),
    mutant(
        "hash-of-the-sealed",
        "R4",
        "G3",
        "Takes a key to stand for the bytes a client has sealed: sent again under another id, they are others.",
        grounds.sealed_and_sent_again,
        Edit(
            "meshforge_trio.intake",
            "payload_hash(command, sealer.digest)",
            "payload_hash(decode_command(delivery.body), sealer.digest)",
        ),
    ),
    mutant(
        "answer-only-with-a-commit",
        "R9",
        "G1",
        "Sends nothing for a turn that has nothing to commit, and forgets that a query commits nothing.",
        grounds.questions_alone,
        Edit(
            _PROTOCOL,
            "        session.broker.echo([*plan.echoes, *plan.answers])\n",
            "        if plan.writes:\n            session.broker.echo([*plan.echoes, *plan.answers])\n",
        ),
    ),
    mutant(
        "answer-stored",
        "R9",
        "G3",
        "Stores the answer to a query like a decision, under a key that nobody sent.",
        grounds.questions,
        Edit(
            _PLAN,
            "            plan.answers.extend(as_message(output) for output in verdict.outputs)\n            continue\n",
            '            outcome = "decided"\n',
        ),
    ),
    mutant(
        "answer-before-commit",
        "R9",
        "G3",
        "Answers a query as soon as it is decided, from a state that is not committed and may never be.",
        grounds.questions,
        Edit(
            _PROTOCOL,
            "        at(BEFORE_STORE)\n        try:\n",
            "        session.broker.echo(plan.answers)\n        at(BEFORE_STORE)\n        try:\n",
        ),
    ),
    mutant(
        "msg-id-made-anew",
        "R10",
        "G4",
        "Gives every publish an id of its own, so that the second publish of an event is another event.",
        grounds.killed_after_publish,
        Edit(_DRAFTS, "import re\n", "import re\nimport uuid\n"),
        Edit(
            _DRAFTS,
            "    return Message(output.subject, output.body, output.msg_id, headers_of(output))\n",
            "    return Message(output.subject, output.body, uuid.uuid4().hex, headers_of(output))\n",
        ),
    ),
    mutant(
        "msg-id-without-scope",
        "R10",
        "G4",
        "Makes the Msg-Id of key and number alone: the stream takes one tenant's event for another's, and keeps one.",
        grounds.identical_tenants,
        Edit(
            _DRAFTS,
            '        seed = "\\0".join((scope.tenant, scope.workspace, scope.agent)).encode()\n',
            "        seed = scope.agent.encode()\n",
        ),
    ),
)

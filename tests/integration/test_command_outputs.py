"""Commands from one agent to another: their stream cannot be read back, so no mark may speak for them."""

from __future__ import annotations

from chaos.case import Case
from chaos.evidence import Sent
from chaos.lab import open_lab
from chaos.plan import parse_plan
from chaos.workload import SCOPE, command


async def test_a_command_that_went_with_the_broker_is_sent_again() -> None:
    """R3: its event is in the copy that is put back, so the mark is believed; it said the command was published too.

    Nobody serves the receiver here, so the command stays in its stream, where it can be seen.
    """
    plan = parse_plan("nats:in_publish@1=copy; nats:after_mark@2=rollback")
    sent = [Sent(command(SCOPE, "tell", 1, entity_id="a"))]
    async with open_lab() as lab:
        outcome = await lab.run(Case("chaos.agents:counter_only", sent, plan, engine={"batch": 1}, deadline_s=6.0))
    assert not outcome.verdict.unhit, str(outcome)
    assert outcome.evidence is not None
    assert [m.subject for m in outcome.evidence.commands] == ["cmd.default.demo.audit.note"], str(outcome)
    # That nobody takes it is all there is to find fault with.
    assert outcome.verdict.broken_ids == ["G12"], str(outcome)

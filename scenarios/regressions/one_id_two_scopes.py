"""One tenant's event was never stored, because another tenant's had the same id.

The stream takes a second message with the same Msg-Id for a duplicate, whatever its subject. Rule R10: the Msg-Id is a
hash of tenant, workspace, agent and key, and of the output's kind and number.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """The same three commands to each of two tenants."""
    sent: list[Sent] = []
    for workspace in ("default/demo", "other/demo"):
        commands = Workload(workspace)
        commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"])
        commands.send("counter", "bloat", {"amount": 2_000_000}, entity="b", expect=["dead"])
        commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"], phase="after")
        sent += commands
    return sent


SCENARIO = Scenario(
    "one-id-two-scopes",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["", "worker#1:before_publish@1=kill"])],
    workspaces=("default/demo", "other/demo"),
    claims=("G1", "G2", "G3", "G4", "G5", "G9", "G11", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)

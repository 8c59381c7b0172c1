"""A command that came again after the duplicate window was published a second time.

The worker is killed when its event is in the stream, and stays away until the stream has forgotten the Msg-Id. The
command comes back, and later the client sends it once more. Rule R4: a duplicate stores nothing; its answer is echoed
under a header that every stream refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload


def workload(seed: int) -> Sequence[Sent]:
    """One command, asked for again."""
    commands = Workload()
    first = commands.send("counter", "roll", entity="a", expect=["decided"], repeatable=False)
    commands.again(first, phase="after")
    commands.send("counter", "add", {"amount": 2}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "copy-beyond-the-window",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["worker#1:after_publish@1=kill(0.7)", "nats:after_publish@1=kill(0.7)"], batches=(1,))],
    engine={"duplicate_window_s": 0.5},
    claims=("G1", "G2", "G3", "G4", "G5", "G8", "G12"),
)

if __name__ == "__main__":
    main(SCENARIO)

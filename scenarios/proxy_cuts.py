"""The connection breaks: python scenarios/proxy_cuts.py

Between worker and server stands a proxy that knows the frames of the protocol. At a chosen frame of each kind (what is
published and its confirmation, the request for commands and their delivery, ACK, NAK, and the request for more time)
it drops the connection before or after forwarding the frame, loses that one frame, or loses everything from there on
while the connection seems to live. At the first frame of the kind and at a later one.

What must hold: whatever the worker was not told, it does not assume. It asks the streams what they have, so nothing is
lost for want of a confirmation and nothing is published twice because one got lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.evidence import Sent
from chaos.plan import FRAMES
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

CUTS = [
    f"proxy:{frame}@{nth}={action}"
    for action in ("cut_before", "cut_after", "swallow")
    for nth, frames in ((1, FRAMES), (3, ("publish", "puback", "delivery", "ack")))
    for frame in frames
]
# Noticed only by what does not come, after some seconds.
HOLES = [f"proxy:{frame}@2=blackhole" for frame in FRAMES]


def workload(seed: int) -> Sequence[Sent]:
    """Decisions, one that takes longer than a delivery may lie unanswered, one that fails, and one behind it."""
    commands = Workload()
    commands.send("patient", "add", {"amount": 1 + seed}, entity="a", expect=["decided"])
    commands.send("patient", "explode", entity="b", expect=["dead"])
    commands.send("patient", "add", {"amount": 2}, entity="b", expect=["decided"])
    commands.send("patient", "wait", {"seconds": 0.5}, entity="c", expect=["decided"])
    commands.send("patient", "add", {"amount": 3}, entity="b", expect=["decided"])
    commands.send("patient", "add", {"amount": 4}, entity="a", expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "proxy-cuts",
    __doc__,
    "chaos.agents:patient_only",
    workload,
    # One command at a time, so that there are several frames of each kind.
    searches=[Fixed([*HOLES, *CUTS], batches=(1,))],
    engine={"ack_wait_s": 0.4, "publish_timeout_s": 0.4},
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13"),
)

if __name__ == "__main__":
    main(SCENARIO)

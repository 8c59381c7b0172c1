"""Crash tests of the parcels: real processes, real SIGKILL, no mocks."""

from __future__ import annotations

import pytest

from chaos.harness import ChaosSweep, ChaosWorld
from chaos.workload import Workload
from meshforge_trio.server import PrivateServer

APP = "parcels:app"


def day(seed: int) -> Workload:
    """Some parcels, one of them delivered twice by an eager courier, one asked for again by an anxious client."""
    commands = Workload()
    for number in range(1, 5):
        registered = commands.send("parcel", "register", {"to": f"street {seed + number}"}, entity=f"p-{number}")
        commands.send("parcel", "deliver", {"courier": "Ada"}, entity=f"p-{number}", expect=["decided"])
    commands.again(registered)
    commands.send("parcel", "deliver", {"courier": "Bob"}, entity="p-1", expect=["refused"])
    commands.send("parcel", "get", entity="p-1", query=True)
    commands.send("parcel", "register", {"to": "the sea"}, entity="p-9", phase="after", expect=["decided"])
    return commands


@pytest.mark.chaos
def test_a_server_is_at_hand(chaos_nats: PrivateServer) -> None:
    assert chaos_nats.running


@pytest.mark.chaos
@pytest.mark.parametrize(
    "plan",
    [
        "worker#1:before_store@1=kill",
        "worker#1:after_store@2=kill; worker#2:in_recovery@1=kill",
        "nats:after_publish@1=restart",
        "proxy:puback@2=cut_before",
    ],
)
def test_nothing_is_lost_or_doubled(chaos_world: ChaosWorld, plan: str) -> None:
    chaos_world(APP, day, plan, engine={"batch": 4})


@pytest.mark.chaos
def test_a_kill_anywhere(chaos_sweep: ChaosSweep) -> None:
    chaos_sweep(APP, day)

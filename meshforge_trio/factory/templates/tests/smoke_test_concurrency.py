#!/usr/bin/env python3
"""Two who want the same at the same time, over the bus: python tests/smoke_test_concurrency.py"""

from __future__ import annotations

import asyncio
import uuid

from bus import Bus, connected
from world import World, world


async def smoke(to: World) -> None:
    """Every step."""
    async with connected(to) as bus:
        print("Connected. Starting Concurrency Smoke Test...")
        await conflict(bus)
{% if toggles.lock_manager %}
        await lock(bus)
{% endif %}
    print("\n🎉 CONCURRENCY SMOKE TEST PASSED!")


async def conflict(bus: Bus) -> None:
    """Two commands expect the same version: one takes effect, the other hears of the conflict, and hears it again."""
    entity = {{ lead.entity }}
    print("\n--- Step 1: Conflict (Same Expected Version) ---")
    await bus.listen({{ lead.agent | python }})
    first, second = await asyncio.gather(ask(bus, entity), ask(bus, entity))
    answers = [await bus.answer(first), await bus.answer(second)]
    lost = [answer for answer in answers if answer["name"] == "conflict"]
    assert len(lost) == 1, f"one of two had to lose: {[answer['name'] for answer in answers]}"
    told = lost[0]["payload"]
    assert told["entity_id"] == entity
    assert told["expected_version"] == 0
    assert told["current_version"] >= 1
    print(f"✅ Conflict: version {told['expected_version']} was expected, {told['current_version']} is current.")

    print("\n--- Step 2: The Loser Asks Again (Same Idempotency Key) ---")
    again = await ask(bus, entity, lost[0]["idempotency_key"])
    assert await bus.answer(again, "conflict") == lost[0]
    print("✅ The same conflict, byte for byte.")


async def ask(bus: Bus, entity: str, key: str | None = None) -> dict[str, object]:
    """Expect an entity that nobody has touched."""
{{ lead.expecting }}
{% if toggles.lock_manager %}


async def lock(bus: Bus) -> None:
    """Two owners want one resource: one gets it, and the next holder's token is higher."""
    resource = f"resource-{uuid.uuid4()}"
    print("\n--- Step 3: Lock (Acquire, Denied, Release) ---")
    await bus.listen("lock")
    wanted = {"resource_id": resource, "ttl_seconds": 60.0}
    ann = await bus.send("sys_lock_manager", "acquire", {**wanted, "owner_id": "ann"})
    held = await bus.answer(ann, "acquired")
    bob = await bus.send("sys_lock_manager", "acquire", {**wanted, "owner_id": "bob"})
    denied = await bus.answer(bob, "denied")
    assert denied["payload"]["current_owner"] == "ann"
    given_back = await bus.send("sys_lock_manager", "release", {"resource_id": resource, "owner_id": "ann"})
    await bus.answer(given_back, "released")
    retry = await bus.send("sys_lock_manager", "acquire", {**wanted, "owner_id": "bob"})
    taken = await bus.answer(retry, "acquired")
    assert taken["payload"]["fencing_token"] > held["payload"]["fencing_token"]
    print("✅ Lock: one holder at a time, and tokens rise.")
{% endif %}


def test_smoke_concurrency() -> None:
    """Under pytest."""
    with world() as to:
        asyncio.run(smoke(to))


if __name__ == "__main__":
    with world({{ default_url | python if broker != "private" }}) as there:
        asyncio.run(smoke(there))

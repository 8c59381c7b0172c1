#!/usr/bin/env python3
"""The workspace in one go, over the bus: python tests/smoke_test.py

{% if broker == "private" %}
It starts a nats-server and the agents, unless NATS_URL names where they are.
{% else %}
It talks to what `docker compose` has started{{ " at NATS_URL, by default " ~ default_url }}. Under pytest it starts a
broker and the agents of its own, unless NATS_URL is set.
{% endif %}
"""

from __future__ import annotations

import asyncio
import uuid

from bus import Bus, connected
from world import World, world


async def smoke(to: World) -> None:
    """Every step, each on entities of its own."""
    async with connected(to) as bus:
        print("Connected. Starting Smoke Test...")
        await lead(bus)
{% for step in others %}
        await {{ step.function }}(bus)
{% endfor %}
    print("\n🎉 SMOKE TEST PASSED!")


async def lead(bus: Bus) -> None:
    """{{ lead.title }} is asked for an effect, for its state, and for the same effect again."""
    entity = {{ lead.entity }}
    print("\n--- Step 1: {{ lead.action_title }} {{ lead.title }} (Command) ---")
    await bus.listen({{ lead.agent | python }})
{{ lead.call }}
    done = await bus.answer(command, {{ lead.events }})
    print(f"✅ {{ lead.title }} {done['name'].replace('_', ' ').title()} Event Verified.")
{% if lead.query %}

    print("\n--- Step 2: Verify State (Gateway) ---")
    question = await bus.send({{ lead.agent | python }}, {{ lead.query | python }}, {}, entity=entity)
    await bus.answer(question, "found")
    print("✅ {{ lead.title }} State Verified via Bus.")
{% endif %}

    print("\n--- Step {{ 3 if lead.query else 2 }}: Idempotency Test (Exactly-Once) ---")
    print("Re-publishing the SAME {{ lead.action_title }} Command (Same Idempotency Key)...")
{{ lead.again }}
    told = await bus.answer(again, {{ lead.events }})
    assert told == done, f"another answer: {told} instead of {done}"
    print("✅ Idempotency: Event re-received.")
{% for step in others %}


async def {{ step.function }}(bus: Bus) -> None:
    """{{ step.title }} works beside it."""
    entity = {{ step.entity }}
    print("\n--- Step {{ step.number }}: {{ step.title }} Interaction ---")
    await bus.listen({{ step.agent | python }})
{{ step.call }}
    await bus.answer(command, {{ step.events }})
    print("✅ {{ step.title }} Agent verified.")
{% endfor %}


def test_smoke() -> None:
    """Under pytest."""
    with world() as to:
        asyncio.run(smoke(to))


if __name__ == "__main__":
    with world({{ default_url | python if broker != "private" }}) as there:
        asyncio.run(smoke(there))

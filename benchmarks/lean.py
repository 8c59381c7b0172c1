"""The reference: a pass-through without a store, on nats-py's public API, as fast as that gets.

Own pull requests on one inbox, one shared PubAck inbox, raw ACKs, plain asyncio. Run as a process of its own by
`throughput.py`: python -m benchmarks.lean URL COUNT
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import nats
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

BATCH = 256


async def drain(url: str, count: int) -> float:
    """Move `count` messages from LEAN_IN to LEAN_OUT; return messages per second."""
    client = await nats.connect(url)
    stream = client.jetstream()
    await stream.add_consumer(
        "LEAN_IN", ConsumerConfig(durable_name="lean", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=4096)
    )
    inbox, ack_inbox = client.new_inbox(), client.new_inbox()
    arrived: list[Msg] = []
    wake, acked = asyncio.Event(), asyncio.Event()
    acks = wanted = 0

    async def on_message(message: Msg) -> None:
        arrived.append(message)
        wake.set()

    async def on_ack(_: Msg) -> None:
        nonlocal acks
        acks += 1
        if acks >= wanted:
            acked.set()

    await client.subscribe(inbox, cb=on_message, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.subscribe(ack_inbox, cb=on_ack, pending_msgs_limit=-1, pending_bytes_limit=-1)
    request = json.dumps({"batch": BATCH, "expires": 5_000_000_000}).encode()
    asked = moved = 0
    begin = time.perf_counter()
    while moved < count:
        while asked - moved <= BATCH and asked < count + 2 * BATCH:
            await client.publish("$JS.API.CONSUMER.MSG.NEXT.LEAN_IN.lean", request, reply=inbox)
            asked += BATCH
        await wake.wait()
        wake.clear()
        batch = [m for m in arrived[:BATCH] if m.subject != inbox]
        del arrived[:BATCH]
        if arrived:
            wake.set()
        wanted = acks + len(batch)
        acked.clear()
        for message in batch:
            name = str(message.reply)
            await client.publish("lean.out", message.data, reply=ack_inbox, headers={"Nats-Msg-Id": name})
        if batch:
            await acked.wait()
        for message in batch:
            await client.publish(message.reply, b"+ACK")
        moved += len(batch)
    rate = count / (time.perf_counter() - begin)
    await client.close()
    return rate


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(drain(sys.argv[1], int(sys.argv[2])))) + "\n")

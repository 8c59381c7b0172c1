"""A client as anybody would write it with nats-py: it sends commands and hears events, and knows nothing of the agents."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NoStreamResponseError

{% if toggles.security == "signed" %}
from meshforge_trio.signing import Signer

{% endif %}
from world import TENANT, WORKSPACE, World

Json = dict[str, Any]

_WAIT_S: Final = 30.0


class Bus:
    """One connection, and the events that came over it."""

    def __init__(self, client: Client{{ ", signer: Signer" if toggles.security == "signed" }}) -> None:
        self._client = client
{% if toggles.security == "signed" %}
        self._signer = signer
{% endif %}
        self._heard: asyncio.Queue[Json] = asyncio.Queue()

    async def listen(self, agent: str) -> None:
        """Hear the events of an agent from now on."""

        async def hear(message: Msg) -> None:
            self._heard.put_nowait(json.loads(message.data))

        subject = f"evt.{TENANT}.{WORKSPACE}.{agent}.>"
        print(f"Subscribing to {subject}...")
        await self._client.subscribe(subject, cb=hear)
        await self._client.flush()

    async def send(
        self,
        agent: str,
        action: str,
        payload: Json,
        *,
        entity: str | None = None,
        key: str | None = None,
        expected_version: int | None = None,
    ) -> Json:
        """Have the command stream store a command. A new id each time; the same key is the same effect."""
        command: Json = {
            "id": str(uuid.uuid4()),
            "tenant": TENANT,
            "workspace": WORKSPACE,
            "agent": agent,
            "action": action,
            "payload": payload,
            "idempotency_key": key or str(uuid.uuid4()),
            "security_context": {"principal_id": "smoke-test", "principal_type": "user"},
        }
        if entity is not None:
            command["entity_id"] = entity
        if expected_version is not None:
            command["expected_version"] = expected_version
        subject = f"cmd.{TENANT}.{WORKSPACE}.{'lock' if agent == 'sys_lock_manager' else agent}.{action}"
        print(f"Publishing to {subject} (ID={command['id']}, Key={command['idempotency_key']})...")
        await self._publish(subject, json.dumps(command).encode())
        return command

    async def _publish(self, subject: str, body: bytes) -> None:
        """Until the stream has it: right after its start the runtime may not have made the stream yet."""
        headers = {{ "dict(self._signer.headers(subject, body))" if toggles.security == "signed" else "None" }}
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                await self._client.jetstream().publish(subject, body, headers=headers)
                return
            except (NoStreamResponseError, nats.errors.TimeoutError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def answer(self, command: Json, *names: str) -> Json:
        """The event of one of these names that answers the command, told by its key."""
        while True:
            event = await asyncio.wait_for(self._heard.get(), _WAIT_S)
            if event["idempotency_key"] == command["idempotency_key"] and event["agent"] == command["agent"]:
                print(f"Received Event: evt.{event['agent']}.{event['name']} (ID={event['id']})")
                assert not names or event["name"] in names, f"{event['name']} instead of {' or '.join(names)}: {event['payload']}"
                return event


@asynccontextmanager
async def connected(to: World) -> AsyncIterator[Bus]:
    """A connection to the bus of a world."""
    print(f"Connecting to NATS at {to.url}...")
    client = await nats.connect(
        to.url.split(","),
        connect_timeout=10,
        max_reconnect_attempts=3,
{% if cluster %}
        nkeys_seed_str=(to.keys / f"{TENANT}-client.nk").read_text().strip(),
        inbox_prefix=f"_INBOX_{TENANT}_client".encode(),
{% endif %}
    )
    try:
        yield Bus(client{{ ', Signer.from_file(to.keys / f"{TENANT}-client.nk")' if toggles.security == "signed" }})
    finally:
        await client.close()

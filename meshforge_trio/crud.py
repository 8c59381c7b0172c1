"""An agent that keeps documents: create, get, update, delete. Ready to use, and a model for one's own."""

from __future__ import annotations

from typing import Any

from meshforge_trio.agent import Agent, Context, Event, Reply
from meshforge_trio.envelope import JsonObject
from meshforge_trio.errors import Refused

__all__ = ["crud_agent"]

Document = JsonObject | None


def crud_agent(name: str) -> Agent[Document]:
    """`create`, `update`, `delete` → `created`, `updated`, `deleted`; `get` → `found` or `not_found`.

    The document is the payload, whole on `create`, merged key by key on `update`. Every answer carries
    `entity_version`. Creating what exists is refused (`already_exists`), changing what does not is `not_found`.
    """
    agent: Agent[Document] = Agent(name, state=Any)

    @agent.command("create")
    def create(state: Document, payload: JsonObject, ctx: Context) -> Event:
        _entity(ctx)
        if state is not None:
            raise Refused(f"{name} {ctx.entity_id!r} exists already", code="already_exists", field="entity_id")
        return Event("created", payload)

    @agent.command("update")
    def update(state: Document, payload: JsonObject, ctx: Context) -> Event:
        _existing(state, ctx)
        return Event("updated", payload)

    @agent.command("delete")
    def delete(state: Document, _: JsonObject, ctx: Context) -> Event:
        _existing(state, ctx)
        return Event("deleted")

    @agent.query("get")
    def get(state: Document, _: JsonObject, ctx: Context) -> Reply:
        _entity(ctx)
        return Reply("not_found") if state is None else Reply("found", dict(state))

    @agent.event("created")
    def created(_: Document, payload: JsonObject) -> Document:
        return _without_version(payload)

    @agent.event("updated")
    def updated(state: Document, payload: JsonObject) -> Document:
        return {**(state or {}), **_without_version(payload)}

    @agent.event("deleted")
    def deleted(_state: Document, _payload: JsonObject) -> Document:
        return None

    def _entity(ctx: Context) -> None:
        if ctx.entity_id is None:
            raise Refused(f"{name} needs an entity_id", code="missing_field", field="entity_id")

    def _existing(state: Document, ctx: Context) -> None:
        _entity(ctx)
        if state is None:
            raise Refused(f"{name} {ctx.entity_id!r} does not exist", code="not_found", name="not_found")

    return agent


def _without_version(payload: JsonObject) -> JsonObject:
    return {key: value for key, value in payload.items() if key != "entity_version"}

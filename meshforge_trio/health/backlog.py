"""What waits at the broker: undecided commands and subscribed events of each scope, asked of the streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import trio

from meshforge_trio.broker.api import with_filter_list
from meshforge_trio.broker.survey import Survey, unix_time
from meshforge_trio.errors import MeshForgeError
from meshforge_trio.health.report import BrokerHealth, ScopeHealth
from meshforge_trio.subjects import COMMANDS, EVENTS, Scope, command_filter, consumer_name

__all__ = ["with_backlog"]


async def with_backlog(
    survey: Survey, scopes: Mapping[Scope, ScopeHealth], timeout_s: float
) -> tuple[BrokerHealth, Sequence[ScopeHealth]]:
    """The scopes with what waits for them in the command stream, and what the broker is like.

    A broker that does not answer within `timeout_s` seconds, or says no, is told in `problem`; the scopes are then as
    they were.
    """
    server = survey.server
    broker = BrokerHealth("", server=server.get("server_id", ""), version=server.get("version", ""))
    try:
        with trio.fail_after(timeout_s):
            info = await survey.stream(COMMANDS)
            if info is None:
                return broker, list(scopes.values())
            now = unix_time(info["ts"])
            return broker, [await _with_backlog(survey, scope, was, now) for scope, was in scopes.items()]
    except trio.TooSlowError:
        return attrs.evolve(broker, problem=f"no answer within {timeout_s:g} s"), list(scopes.values())
    except MeshForgeError as error:
        return attrs.evolve(broker, problem=str(error)), list(scopes.values())


async def _with_backlog(survey: Survey, scope: Scope, was: ScopeHealth, now: float) -> ScopeHealth:
    # A message leaves the command stream when it is ACKed, so the first one that is there is the oldest undecided.
    oldest = await survey.first_from(COMMANDS, command_filter(scope), 1)
    consumer = await survey.consumer(COMMANDS, consumer_name(scope))
    count = _undecided(consumer) if consumer is not None else None if oldest is not None else 0
    since = [] if oldest is None else [oldest.at]
    # Only an agent that subscribes to events has a consumer there.
    events = await survey.consumer(EVENTS, consumer_name(scope))
    if events is not None and _undecided(events):
        count = None if count is None else count + _undecided(events)
        since += await _first_event(survey, events)
    return attrs.evolve(
        was,
        undecided=count,
        undecided_age_s=max(0.0, now - min(since)) if since else None,
        redelivered=None if consumer is None else consumer["num_redelivered"],
    )


def _undecided(consumer: Mapping[str, Any]) -> int:
    """Those not delivered yet and those in hand."""
    return int(consumer["num_pending"]) + int(consumer["num_ack_pending"])


async def _first_event(survey: Survey, consumer: Mapping[str, Any]) -> Sequence[float]:
    """When the first events above the ACK floor came, one for each filter."""
    above = consumer["ack_floor"]["stream_seq"] + 1
    filters = with_filter_list(consumer["config"])["filter_subjects"]
    found = [await survey.first_from(EVENTS, each, above) for each in filters]
    return [message.at for message in found if message is not None]

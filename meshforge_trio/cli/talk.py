"""`meshforge send`, `call` and `tail`: commands to agents and what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs
import click
import orjson
import trio

from meshforge_trio.answers import CommandFailed, OutcomeUnknown, Sent, raise_if_failed
from meshforge_trio.cli.options import (
    Common,
    cancel_on_signal,
    checked_scope,
    common_options,
    principal_name,
    print_json,
    signer_of,
    url_option,
    workspace_option,
)
from meshforge_trio.client import MeshClient, open_client
from meshforge_trio.envelope import EventEnvelope, JsonObject, SecurityContext, decode_json, encode
from meshforge_trio.errors import Poison
from meshforge_trio.launch import connect_options
from meshforge_trio.policy import ExitCode, worst

__all__ = ["call", "send", "tail"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def _command_options(function: F) -> F:
    """Arguments and options of a command to an agent."""
    decorators: tuple[Callable[[F], F], ...] = (
        common_options,
        workspace_option,
        url_option,
        click.option("--principal", metavar="ID", help="Who sends it; else the key `principal`, else the login name."),
        click.option("--key", metavar="KEY", help="Idempotency key: sent twice under one key, it takes effect once."),
        click.option("--expected-version", type=click.IntRange(0), metavar="N", help="Conflict unless it is at this."),
        click.option("--entity", metavar="ID", help="The entity it is about."),
        click.argument("payload", default="{}", metavar="[PAYLOAD|-]"),
        click.argument("action"),
        click.argument("agent"),
    )
    for decorator in decorators:
        function = decorator(function)
    return function


@attrs.frozen
class _Order:
    """A command as it was typed, checked."""

    common: Common
    agent: str
    action: str
    payload: JsonObject
    principal: SecurityContext
    options: dict[str, Any]

    @staticmethod
    def of(agent: str, action: str, payload: str, given: dict[str, Any]) -> _Order:
        fields = {"entity_id": "entity", "expected_version": "expected_version", "idempotency_key": "key"}
        typed = {field: given.pop(option) for field, option in fields.items()}
        options = {field: value for field, value in typed.items() if value is not None}
        principal = given.pop("principal")
        common = Common.take(given, log_level="warning")
        checked_scope(common, agent)
        return _Order(common, agent, action, _object(payload), _principal(common, principal), options)


def _object(text: str) -> JsonObject:
    """The payload: a JSON object, or `-` for one on stdin."""
    body = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogatepass")
    try:
        return decode_json(body)
    except Poison as error:
        raise click.BadParameter(error.reason.replace("body", "it", 1), param_hint="PAYLOAD") from error


def _principal(common: Common, given: str | None) -> SecurityContext:
    return SecurityContext(principal_name(common, given, "--principal"), "user")


@click.command(short_help="Have the stream store a command.")
@_command_options
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, metavar="S")
def send(agent: str, action: str, payload: str, timeout: float, **given: Any) -> int:
    """Send ACTION to AGENT and return once the command stream has stored it. The answer is not awaited.

    PAYLOAD is a JSON object, `-` reads it from stdin. Exit code 6 when no confirmation came in time.
    """
    order = _Order.of(agent, action, payload, given)

    async def talk(client: MeshClient) -> Sent:
        return await client.send(agent, action, order.payload, timeout_s=timeout, **order.options)

    def tell(sent: Sent) -> int:
        if order.common.as_json:
            print_json(attrs.asdict(sent))
        else:
            again = " (it had it already)" if sent.duplicate else ""
            click.echo(f"stored{again}: id {sent.id}, key {sent.idempotency_key}, sequence {sent.stream_seq}")
        return ExitCode.OK

    return _with_client(order.common, order.principal, talk, tell)


@click.command(short_help="Send a command or query and print the answer.")
@_command_options
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, metavar="S")
def call(agent: str, action: str, payload: str, timeout: float, **given: Any) -> int:
    """Send ACTION to AGENT, await the outcome and print it.

    PAYLOAD is a JSON object, `-` reads it from stdin. Exit code 1 for a conflict, a refusal, a dead letter or a
    violation; 6 when no answer came in time: the outcome is unknown, and calling again under the same --key is safe.
    """
    order = _Order.of(agent, action, payload, given)

    async def talk(client: MeshClient) -> EventEnvelope:
        return await client.call(agent, action, order.payload, timeout_s=timeout, **order.options)

    def tell(answer: EventEnvelope) -> int:
        _print_event(answer, as_json=order.common.as_json)
        try:
            raise_if_failed(answer)
        except CommandFailed as failed:
            if not order.common.as_json:
                click.echo(f"meshforge: {failed}", err=True)
            return ExitCode.FAILED
        return ExitCode.OK

    return _with_client(order.common, order.principal, talk, tell)


@click.command(short_help="Follow events.")
@click.option("--agent", metavar="NAME", help="Of this agent only.")
@click.option("--name", metavar="NAME", help="Of this name only.")
@click.option("--from-start", is_flag=True, help="Begin with the oldest event of the stream.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@url_option
@workspace_option
@common_options
def tail(agent: str | None, name: str | None, from_start: bool, count: int | None, **given: Any) -> int:
    """Print the events of a workspace as they are published, each once, until interrupted."""
    common = Common.take(given, log_level="warning")

    async def talk(client: MeshClient) -> None:
        printed = 0
        async with client.events(agent, name, from_start=from_start) as feed:
            async for event in feed:
                _print_event(event, as_json=common.as_json)
                printed += 1
                if printed == count:
                    return

    # Being interrupted is how it ends.
    return _with_client(common, _principal(common, None), talk, lambda _: ExitCode.OK, interrupted=ExitCode.OK)


def _with_client(
    common: Common,
    principal: SecurityContext,
    talk: Callable[[MeshClient], Awaitable[T]],
    tell: Callable[[T], int],
    *,
    interrupted: int = ExitCode.INTERRUPTED,
) -> int:
    """Talk over a client's connection, then tell what came of it; the exit code."""
    tenant, workspace = common.workspace
    signer = signer_of(common.here)
    results: list[T] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, nursery.cancel_scope)
            options = connect_options(common.here)
            async with open_client(
                options,
                tenant=tenant,
                workspace=workspace,
                principal=principal,
                signer=signer,
                codecs=common.codecs(),
            ) as client:
                results.append(await talk(client))
            nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    except Exception as error:
        leaf = worst(error)
        if isinstance(leaf, OutcomeUnknown):
            click.echo(f"meshforge: {leaf}", err=True)
            return ExitCode.OUTCOME_UNKNOWN
        if isinstance(leaf, Poison):
            raise click.UsageError(leaf.reason) from error
        raise
    return tell(results[0]) if results else interrupted


def _print_event(event: EventEnvelope, *, as_json: bool) -> None:
    if as_json:
        print_json(orjson.Fragment(encode(event)))
        return
    at = "" if event.ts is None else datetime.fromtimestamp(event.ts, UTC).isoformat(timespec="milliseconds") + " "
    entity = "" if event.entity_id is None else f" {event.entity_id}"
    click.echo(f"{at}{event.agent}.{event.name}{entity} {json.dumps(event.payload, ensure_ascii=False)}")

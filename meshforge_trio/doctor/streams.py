"""Rules about the server, its streams and consumers: asked, compared with what the runtime would ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from meshforge_trio.broker.api import consumer_config, differences, stream_config, with_filter_list
from meshforge_trio.broker.fitness import unfit_consumer, unfit_stream
from meshforge_trio.broker.port import ConsumerSpec, StreamSpec
from meshforge_trio.broker.survey import Survey
from meshforge_trio.config import Settings
from meshforge_trio.doctor.rules import Finding, Severity, rule
from meshforge_trio.engine import stream_specs
from meshforge_trio.server import MINIMUM_VERSION, parse_version
from meshforge_trio.subjects import COMMANDS, EVENTS, Scope, command_filter, consumer_name

__all__ = ["examine_consumers", "examine_server", "examine_streams", "overlap"]

#: From here on the server syncs what it says it has synced: fixes of 2.15.1, see docs/operations.md.
_DURABLE_VERSION: Final = (2, 15, 1)
_STORAGE_SHARE: Final = 0.9
_LIMITS: Final = frozenset({"max_bytes", "max_age", "max_msg_size", "discard"})
_RULE_OF_KEY: Final[Mapping[str, str]] = {
    "storage": "stream-storage",
    "duplicate_window": "stream-window",
    "num_replicas": "stream-replicas",
    **dict.fromkeys(_LIMITS, "stream-limits"),
}


async def examine_server(survey: Survey, settings: Settings, *, durable: bool) -> Sequence[Finding]:
    """Version of the server, limits of the account. With `durable` nothing may be lost with the power."""
    found = [_version(survey.server.get("version", ""), durable=durable)]
    account = await survey.account()
    found += _account(account, settings)
    return found


def _version(text: str, *, durable: bool) -> Finding:
    version = parse_version(text)
    the, what = rule("server-version"), f"nats-server {text}"
    if version < MINIMUM_VERSION:
        return Finding(the, "refuse", what, f"upgrade it to {'.'.join(map(str, MINIMUM_VERSION))} or newer")
    if version < _DURABLE_VERSION:
        severity: Severity = "refuse" if durable else "warn"
        return Finding(the, severity, what, f"upgrade it to {'.'.join(map(str, _DURABLE_VERSION))} or newer")
    return Finding(the, "ok", what)


def _account(account: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    the, limits = rule("account"), account.get("limits", {})
    fine = True
    pending = limits.get("max_ack_pending", -1)
    if 0 < pending < settings.engine.max_ack_pending:
        fine = False
        what = (
            f"the account allows {pending} unsettled deliveries, max_ack_pending is {settings.engine.max_ack_pending}"
        )
        yield Finding(the, "refuse", what, f"lower engine.max_ack_pending to {pending}, or raise the account's limit")
    most, used = limits.get("max_storage", -1), account.get("storage", 0)
    if most > 0 and used > most * _STORAGE_SHARE:
        fine = False
        what = f"{used} of the {most} bytes that the account may store are used"
        yield Finding(the, "warn", what, "raise the limit, or give the event stream an age")
    if fine:
        yield Finding(the, "ok", f"{used} bytes stored, {'no limit' if most < 0 else f'{most} allowed'}")


async def examine_streams(survey: Survey, settings: Settings) -> Sequence[Finding]:
    """The three streams, and others that take their subjects."""
    found: list[Finding] = []
    for spec in stream_specs(settings.engine):
        info = await survey.stream(spec.name)
        if info is None:
            found.append(Finding(rule("stream-settings"), "ok", f"{spec.name} is made at the first start"))
            for subject in spec.subjects:
                found += [_foreign(name, subject, spec) for name in await survey.streams_taking(subject)]
        else:
            found += _stream(spec, info["config"], clustered="cluster" in survey.server)
    return found


def _foreign(name: str, subject: str, spec: StreamSpec) -> Finding:
    what = f"stream {name} takes subjects of {subject}, which {spec.name} needs"
    return Finding(rule("foreign-streams"), "refuse", what, f"take them from it (`nats stream edit {name}`)")


def _stream(spec: StreamSpec, config: dict[str, Any], *, clustered: bool) -> Iterator[Finding]:
    edit = f"`nats stream edit {spec.name}`, or back to the settings it was made with"
    bad = False
    for key, value in stream_config(spec).items():
        for wrong in differences({key: config.get(key)}, {key: value}):
            bad = True
            name = _RULE_OF_KEY.get(key, "stream-settings")
            anew = "; storage cannot be edited: make the stream anew" if key == "storage" else ""
            yield Finding(rule(name), "refuse", f"{spec.name}: {wrong}", edit + anew)
    for wrong in unfit_stream(config):
        bad = True
        name = "stream-limits" if wrong.startswith("max_msgs") else "stream-settings"
        yield Finding(rule(name), "refuse", f"{spec.name}: {wrong}", edit)
    copies = config["num_replicas"]
    what = f"{spec.name} has {copies} {'copy' if copies == 1 else 'copies'}"
    if clustered and copies == 1:
        yield Finding(
            rule("stream-replicas"), "warn", f"{what} in a cluster", "engine.replicas = 3, and edit the stream"
        )
    elif copies % 2 == 0:
        yield Finding(rule("stream-replicas"), "warn", what, "an odd number of engine.replicas")
    else:
        yield Finding(rule("stream-replicas"), "ok", what)
    if not bad:
        yield Finding(rule("stream-settings"), "ok", f"{spec.name} is as it should be")


async def examine_consumers(survey: Survey, settings: Settings, scopes: Sequence[Scope]) -> Sequence[Finding]:
    """The consumers of `scopes`, and others on the command stream that take their commands."""
    found: list[Finding] = []
    ours = {consumer_name(scope) for scope in scopes}
    there: dict[str, dict[str, Any]] = {}
    for stream in (EVENTS, COMMANDS):
        there = {info["name"]: with_filter_list(info["config"]) for info in await survey.consumers(stream)}
        for name in sorted(ours & there.keys()):
            found += _consumer(stream, name, there[name], settings)
    for name, config in there.items():
        if name in ours:
            continue
        taken = [scope for scope in scopes if _takes(config["filter_subjects"], command_filter(scope))]
        if taken:
            what = f"consumer {name} of {COMMANDS} takes commands of {', '.join(map(str, taken))}"
            found.append(Finding(rule("foreign-consumers"), "refuse", what, f"`nats consumer rm {COMMANDS} {name}`"))
    if not any(finding.rule.id == "foreign-consumers" for finding in found):
        found.append(Finding(rule("foreign-consumers"), "ok", "nobody else takes the commands of these scopes"))
    return found


def _consumer(stream: str, name: str, config: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    engine = settings.engine
    # Filters follow the code: a session changes them.
    filters = tuple(config["filter_subjects"])
    wanted = consumer_config(ConsumerSpec(stream, name, filters, engine.ack_wait_s, engine.max_ack_pending))
    do = f"`nats consumer edit {stream} {name}`; while nothing runs, `nats consumer rm` may do, too: it is made anew"
    bad = False
    for key, value in wanted.items():
        for wrong in differences({key: config.get(key)}, {key: value}):
            bad = True
            the = rule("max-deliver" if key == "max_deliver" else "consumer-settings")
            yield Finding(the, "refuse", f"consumer {name}: {wrong}", do)
    for wrong in unfit_consumer(config):
        bad = True
        yield Finding(rule("consumer-settings"), "refuse", f"consumer {name}: {wrong}", do)
    for key, effect in (
        ("pause_until", "nothing is delivered until then"),
        ("inactive_threshold", "it vanishes when nobody pulls for so long, with what it knew"),
        ("mem_storage", "what it knew is gone after a restart of the server"),
    ):
        if config.get(key):
            bad = True
            what = f"consumer {name}: {key} is {config[key]}: {effect}"
            yield Finding(rule("consumer-settings"), "warn", what, do)
    if not bad:
        yield Finding(rule("consumer-settings"), "ok", f"consumer {name} is as it should be")


def _takes(filters: Sequence[str], subject: str) -> bool:
    # A consumer without filters takes everything.
    return not filters or any(overlap(each, subject) for each in filters)


def overlap(one: str, other: str) -> bool:
    """Whether a subject can match both patterns, with `*` for one token and `>` for the rest."""
    first, second = one.split("."), other.split(".")
    for a, b in zip(first, second, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(first) == len(second)

"""The doctor against a real server: one hidden bad setting each, found under its rule and nothing else.

What the doctor refuses about streams and consumers the runtime refuses at its start: the same settings are declared
through the broker port.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from meshforge_trio.broker.api import JetStreamApi, consumer_config, stream_config
from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Broker, ConsumerSpec, Message
from meshforge_trio.broker.survey import Survey, open_survey
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.doctor.belonging import examine_belonging, read_marks
from meshforge_trio.doctor.rules import Finding
from meshforge_trio.doctor.streams import examine_consumers, examine_server, examine_streams
from meshforge_trio.doctor.syncing import of_monitor
from meshforge_trio.engine import stream_specs
from meshforge_trio.errors import Misconfigured
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.port import Mark
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, Scope, command_filter, consumer_name

from .cli_world import Shop, shop

SCOPE: Final = Scope("default", "demo", "order")
NAME: Final = consumer_name(SCOPE)
_S: Final = 1_000_000_000


@attrs.define(eq=False)
class Bench:
    """A server whose streams are made by hand."""

    url: str
    api: JetStreamApi
    survey: Survey

    async def stream(self, name: str, **changed: Any) -> None:
        """One of ours with other settings, or one of somebody else."""
        specs = {spec.name: spec for spec in stream_specs(EngineSettings())}
        config = stream_config(specs[name]) if name in specs else {"name": name, "storage": "file"}
        reply = await self.api.request(f"STREAM.CREATE.{name}", {**config, **changed})
        assert "error" not in reply, reply

    async def streams(self) -> None:
        """The three of ours, as they should be."""
        for name in (COMMANDS, EVENTS, FAILED):
            await self.stream(name)

    async def consumer(self, name: str, filters: Sequence[str], **changed: Any) -> None:
        config = {**consumer_config(ConsumerSpec(COMMANDS, name, tuple(filters))), **changed}
        request = {"stream_name": COMMANDS, "config": config, "action": "create"}
        reply = await self.api.request(f"CONSUMER.CREATE.{COMMANDS}.{name}", request)
        assert "error" not in reply, reply

    async def found(self, *scopes: Scope) -> list[tuple[str, str]]:
        """What is not ok, as the doctor says."""
        settings = Settings(url=self.url)
        return [
            (finding.rule.id, finding.severity)
            for finding in [
                *await examine_server(self.survey, settings, durable=False),
                *await examine_streams(self.survey, settings),
                *await examine_consumers(self.survey, settings, scopes or [SCOPE]),
            ]
            if finding.severity != "ok"
        ]


async def declare(broker: Broker) -> None:
    """As a session begins."""
    for spec in stream_specs(EngineSettings()):
        await broker.declare(spec)


@pytest.fixture
async def bench(aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer) -> AsyncIterator[Bench]:
    connection = await connect(ConnectOptions(urls=(nats_server.url,)))
    async with open_survey(ConnectOptions(urls=(nats_server.url,))) as survey:
        yield Bench(nats_server.url, JetStreamApi(connection), survey)
    await connection.aclose()


async def test_a_fresh_server_and_one_that_was_used_are_fine(bench: Bench) -> None:
    assert await bench.found() == []
    await bench.streams()
    await bench.consumer(NAME, [command_filter(SCOPE)])
    assert await bench.found() == []


@pytest.mark.parametrize(
    ("name", "changed", "rule"),
    [
        (COMMANDS, {"storage": "memory"}, "stream-storage"),
        (EVENTS, {"storage": "memory"}, "stream-storage"),
        (COMMANDS, {"retention": "limits"}, "stream-settings"),
        (EVENTS, {"subjects": ["evt.>", "else.>"]}, "stream-settings"),
        (COMMANDS, {"max_age": 3600 * _S}, "stream-limits"),
        (COMMANDS, {"max_bytes": 1 << 20}, "stream-limits"),
        (EVENTS, {"max_msgs": 1000}, "stream-limits"),
        (COMMANDS, {"max_msgs_per_subject": 1}, "stream-limits"),
        (FAILED, {"max_msg_size": 100}, "stream-limits"),
        (COMMANDS, {"discard": "new"}, "stream-limits"),
        (EVENTS, {"duplicate_window": 5 * _S}, "stream-window"),
        (COMMANDS, {"no_ack": True}, "stream-settings"),
        (EVENTS, {"allow_rollup_hdrs": True}, "stream-settings"),
        (EVENTS, {"subject_transform": {"src": "evt.>", "dest": "evt.x.>"}}, "stream-settings"),
        (FAILED, {"allow_direct": False}, "stream-settings"),
    ],
)
async def test_each_bad_setting_of_a_stream(bench: Bench, name: str, changed: Mapping[str, Any], rule: str) -> None:
    for each in (COMMANDS, EVENTS, FAILED):
        await bench.stream(each, **(changed if each == name else {}))
    assert await bench.found() == [(rule, "refuse")]
    async with open_broker(bench.url) as broker:
        with pytest.raises(Misconfigured, match=f"stream {name} exists with other settings"):
            await declare(broker)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"max_deliver": 5}, "max-deliver"),
        ({"ack_wait": 1 * _S}, "consumer-settings"),
        ({"max_ack_pending": 10}, "consumer-settings"),
        ({"headers_only": True}, "consumer-settings"),
        ({"max_batch": 5}, "consumer-settings"),
        ({"max_expires": 1 * _S}, "consumer-settings"),
        ({"max_bytes": 100}, "consumer-settings"),
        ({"priority_groups": ["g"], "priority_policy": "overflow"}, "consumer-settings"),
    ],
)
async def test_each_bad_setting_of_a_consumer(bench: Bench, changed: Mapping[str, Any], rule: str) -> None:
    await bench.streams()
    await bench.consumer(NAME, [command_filter(SCOPE)], **changed)
    assert await bench.found() == [(rule, "refuse")]
    async with open_broker(bench.url) as broker:
        with pytest.raises(Misconfigured, match="exists with other settings"):
            await broker.consume(ConsumerSpec(COMMANDS, NAME, (command_filter(SCOPE),)))


async def test_a_bad_setting_of_a_consumer_of_events(bench: Bench) -> None:
    await bench.streams()
    config = consumer_config(ConsumerSpec(EVENTS, NAME, ("evt.default.demo.inventory.added",)))
    request = {"stream_name": EVENTS, "config": {**config, "max_deliver": 3}, "action": "create"}
    assert "error" not in await bench.api.request(f"CONSUMER.CREATE.{EVENTS}.{NAME}", request)
    assert await bench.found() == [("max-deliver", "refuse")]


@pytest.mark.parametrize(
    "changed",
    [
        {"inactive_threshold": 60 * _S},
        {"pause_until": "2100-01-01T00:00:00Z"},
        {"mem_storage": True},
    ],
)
async def test_each_doubtful_setting_of_a_consumer(bench: Bench, changed: Mapping[str, Any]) -> None:
    await bench.streams()
    await bench.consumer(NAME, [command_filter(SCOPE)], **changed)
    assert await bench.found() == [("consumer-settings", "warn")]


@pytest.mark.parametrize("filters", [["cmd.>"], [], ["cmd.default.*.order.create"], ["cmd.default.demo.order.>"]])
async def test_a_consumer_of_somebody_else_that_takes_our_commands(bench: Bench, filters: Sequence[str]) -> None:
    await bench.streams()
    await bench.consumer("spy", filters)
    assert await bench.found() == [("foreign-consumers", "refuse")]
    async with open_broker(bench.url) as broker:
        with pytest.raises(Misconfigured, match="consumer"):
            await broker.consume(ConsumerSpec(COMMANDS, NAME, (command_filter(SCOPE),)))


async def test_a_consumer_of_another_scope_is_nobodys_business(bench: Bench) -> None:
    await bench.streams()
    await bench.consumer("other", ["cmd.default.demo.inventory.>"])
    assert await bench.found() == []


@pytest.mark.parametrize("subject", ["cmd.>", "evt.default.>", "failed.cmd.*.x.>"])
async def test_a_stream_of_somebody_else_that_takes_our_subjects(bench: Bench, subject: str) -> None:
    await bench.stream("OTHER", subjects=[subject])
    assert await bench.found() == [("foreign-streams", "refuse")]
    async with open_broker(bench.url) as broker:
        with pytest.raises(Misconfigured, match="subjects overlap"):
            await declare(broker)


async def test_limits_of_an_account(tmp_path: Path, aio_loop: asyncio.AbstractEventLoop) -> None:
    accounts = (
        "accounts { A { jetstream { max_store: 10M, max_ack_pending: 100 }, users [ {user: a, password: a} ] } }\n"
    )
    with PrivateServer(config=accounts) as server:
        options = ConnectOptions(urls=(server.url,), user="a", password="a")
        async with open_survey(options) as survey:
            findings = await examine_server(survey, Settings(url=server.url), durable=False)
    assert [(finding.rule.id, finding.severity) for finding in findings] == [
        ("server-version", "ok"),
        ("account", "refuse"),
    ]


@pytest.mark.parametrize(("sync", "interval"), [(None, "120s"), ("always", "always"), ("100ms", "0.1s")])
def test_a_monitoring_port_tells_how_the_server_syncs(sync: str | None, interval: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with PrivateServer(config=f"http: 127.0.0.1:{port}", sync_interval=sync):
        assert of_monitor(f"http://127.0.0.1:{port}/").interval == interval


# -- store and streams -------------------------------------------------------------------------------------------


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


def used(at: Shop, *entities: str) -> None:
    """Serve the shop until these orders are created."""
    with at.served() as running:
        for entity in entities:
            at.answers("call", "order", "create", "{}", "--entity", entity)
        running.process.terminate()
        assert running.ended() == 0


async def belongs(at: Shop) -> list[Finding]:
    marks = read_marks(at.store)
    async with open_survey(ConnectOptions(urls=(at.url,))) as survey:
        return list(await examine_belonging(survey, at.store, marks, [SCOPE]))


async def test_a_store_and_its_streams_belong_together(aio_loop: asyncio.AbstractEventLoop, at: Shop) -> None:
    assert [finding.severity for finding in await belongs(at)] == ["ok"]
    used(at, "a", "b")
    (finding,) = await belongs(at)
    assert (finding.severity, finding.found) == (
        "ok",
        "default/demo/order: the streams confirm the newest mark, output 2",
    )


async def test_a_stream_made_anew(aio_loop: asyncio.AbstractEventLoop, at: Shop, nats_server: PrivateServer) -> None:
    used(at, "a", "b")
    nats_server.kill()
    shutil.rmtree(nats_server.store_dir)
    nats_server.restart()
    (finding,) = await belongs(at)
    assert (finding.rule.id, finding.severity) == ("store-streams", "refuse")


async def test_an_empty_store_on_used_streams(aio_loop: asyncio.AbstractEventLoop, at: Shop) -> None:
    used(at, "a")
    shutil.rmtree(at.store.parent)
    (finding,) = await belongs(at)
    assert (finding.rule.id, finding.severity) == ("store-streams", "refuse")
    assert "holds its events from sequence 1 on" in finding.found


async def test_streams_of_another_store(aio_loop: asyncio.AbstractEventLoop, at: Shop, tmp_path: Path) -> None:
    used(at, "a", "b", "c")
    with PrivateServer() as other:
        (tmp_path / "other").mkdir()
        there = shop(tmp_path / "other", other.url)
        used(there, "x", "y", "z")
        (finding,) = await belongs(attrs.evolve(at, url=other.url))
    assert (finding.rule.id, finding.severity) == ("store-streams", "refuse")


async def test_streams_that_went_back(
    aio_loop: asyncio.AbstractEventLoop, at: Shop, nats_server: PrivateServer, tmp_path: Path
) -> None:
    used(at, "a")
    nats_server.kill()
    shutil.copytree(nats_server.store_dir, tmp_path / "older")
    nats_server.restart()
    used(at, "b", "c")
    nats_server.kill()
    shutil.rmtree(nats_server.store_dir)
    shutil.copytree(tmp_path / "older", nats_server.store_dir)
    nats_server.restart()
    (finding,) = await belongs(at)
    assert (finding.rule.id, finding.severity) == ("store-streams", "warn")
    assert "outputs above 1 are to be published again" in finding.found


@pytest.mark.parametrize("kept", range(1, 9))
async def test_the_newest_mark_that_still_holds_is_found(bench: Bench, kept: int, tmp_path: Path) -> None:
    await bench.streams()
    async with open_broker(bench.url) as broker:
        await broker.publish([Message("evt.default.demo.order.x", b"{}", f"m{n}") for n in range(1, kept + 1)], 5.0)
    # The oldest was made over an empty stream; two were made at one place.
    marks = [Mark(n, n, f"m{n}", 0, "", 1.0) for n in (8, 7, 7, 6, 5, 4, 3, 2, 1)] + [Mark(0, 0, "", 0, "", 1.0)]
    (finding,) = await examine_belonging(bench.survey, tmp_path / "s.db", {SCOPE: marks}, [SCOPE])
    if kept == 8:
        assert (finding.severity, finding.found) == (
            "ok",
            "default/demo/order: the streams confirm the newest mark, output 8",
        )
    else:
        assert (finding.severity, f"outputs above {kept} are" in finding.found) == ("warn", True)


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_refuses_warns_and_is_content(at: Shop) -> None:
    at.store.parent.mkdir(mode=0o700)
    found = at.does("doctor", "--app", "shop:app", "--strict", "--json")
    assert found.code == ExitCode.OK, found
    assert {document["severity"] for document in found.documents} == {"ok", "unknown"}
    doubtful = {"MESHFORGE_ENGINE__ACK_WAIT_S": "10"}
    assert at.does("doctor", env=doubtful).code == ExitCode.OK
    strict = at.does("doctor", "--strict", env=doubtful)
    assert strict.code == ExitCode.FAILED
    assert "see: scenarios/regressions/" in strict.out
    bad = {"MESHFORGE_ENGINE__MAX_ACK_PENDING": "3"}
    refused = at.does("doctor", env=bad)
    assert refused.code == ExitCode.MISCONFIGURED
    assert "refuse  ack-pending" in refused.out
    # And so does the runtime.
    ran = at.does("run", "shop:app", env=bad)
    assert ran.code == ExitCode.MISCONFIGURED
    assert "rule ack-pending of `meshforge doctor`" in ran.err


def test_without_a_server_the_rest_is_examined(tmp_path: Path) -> None:
    away = shop(tmp_path, "nats://127.0.0.1:9")
    found = away.does("doctor", "--server-config", "server.conf")
    assert found.code == ExitCode.MISCONFIGURED
    (tmp_path / "server.conf").write_text("jetstream { sync_interval: 10s }")
    found = away.does("doctor", "--server-config", "server.conf")
    assert found.code == ExitCode.FAILED
    assert "not examined: server, streams and consumers" in found.out
    assert "warn    server-sync" in found.out
    assert away.does("doctor", "--server-config", "server.conf", "--durable").code == ExitCode.MISCONFIGURED

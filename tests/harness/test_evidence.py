"""Images: what is put into a directory is what is read out of it, and a damaged one is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest
import trio

from chaos.evidence import Evidence, ImageError, Sent, envelope_of, load_image, save_image
from chaos.history import Record
from chaos.observer import open_observer
from chaos.rows import OutputRow, Rows
from chaos.workload import SCOPE, command
from meshforge_trio.broker.port import Message, StoredMessage
from meshforge_trio.envelope import payload_hash
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, Scope

FILES = ("image.json", "store.db", "commands.jsonl", "events.jsonl", "failed.jsonl")


def call(key: str, scope: str = "default/demo/counter") -> Record:
    fields = {"scope": scope, "key": key, "id": "c", "action": "add", "entity": "a", "version": 0, "before": "0"}
    return Record(1, "worker#1", "call", fields)


def output(body: bytes) -> OutputRow:
    return OutputRow(SCOPE, 1, "event", "k1", "e1", "added", "evt.s", "m1", body, "a", 1, b"c")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
async def image(aio_loop: object, nats_server: PrivateServer, tmp_path: Path) -> Path:
    """An image with 300 commands, an event that is no text, and nothing in the third stream."""
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF")
    await store.close()
    with trio.fail_after(30):
        async with open_observer(nats_server.url) as observer:
            await observer.send([Sent(command(SCOPE, "add", n, {"text": "é\n"})) for n in range(300)])
            broker = await observer.broker()
            await broker.publish([Message("evt.default.demo.counter.added", b"\xff\x00\n", "m1")], 5.0)
            await save_image(broker, tmp_path / "store.db", tmp_path / "home" / "image-1", final=True)
    return tmp_path / "home" / "image-1"


async def test_it_is_read_back_as_it_was(image: Path) -> None:
    assert names(image) == sorted(FILES)
    evidence = load_image(image, limit=3)
    assert (evidence.final, evidence.limit) == (True, 3)
    assert [message.seq for message in evidence.commands] == list(range(1, 301))
    first = Sent(command(SCOPE, "add", 0, {"text": "é\n"}))
    assert evidence.commands[0] == StoredMessage(1, first.subject, "default/demo/counter/c0", first.body)
    assert evidence.events == [StoredMessage(1, "evt.default.demo.counter.added", "m1", b"\xff\x00\n")]
    assert evidence.failed == []
    assert {name: facts.messages for name, facts in evidence.facts.items()} == {COMMANDS: 300, EVENTS: 1, FAILED: 0}
    assert evidence.rows.outputs == []


async def test_a_damaged_one_is_refused(image: Path, tmp_path: Path) -> None:
    def refused(name: str, content: bytes | None) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(image, copy)
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{copy} is no image of a run, or a damaged one"):
            load_image(copy)
        shutil.rmtree(copy)

    told = orjson.loads((image / "image.json").read_bytes())
    for name in FILES:
        refused(name, None)
        whole = (image / name).read_bytes()
        if len(whole) > 3:
            refused(name, whole[: len(whole) // 2 + 1])
        refused(name, b"\x01" * 2000)
    refused("image.json", b"[]")
    refused("image.json", b"{}")
    refused("image.json", orjson.dumps({**told, "facts": []}))
    refused("image.json", orjson.dumps({**told, "facts": {COMMANDS: {"name": COMMANDS}}}))
    refused("image.json", orjson.dumps({**told, "copied": {}}))
    refused("image.json", orjson.dumps({name: value for name, value in told.items() if name != "store"}))
    *lines, _ = (image / "commands.jsonl").read_bytes().splitlines(keepends=True)
    refused("commands.jsonl", b"".join(lines))
    refused("events.jsonl", b"")
    refused("events.jsonl", b"[]\n")
    refused("events.jsonl", b'{"seq":1,"subject":"s"}\n')
    refused("events.jsonl", b'{"seq":1,"subject":"s","msg_id":"m"}\n')
    refused("events.jsonl", b'{"seq":1,"subject":"s","msg_id":"m","body_base64":"!"}\n')
    with pytest.raises(ImageError):
        load_image(tmp_path / "nowhere")


async def test_a_store_that_was_not_made_yet_holds_nothing(image: Path) -> None:
    told = orjson.loads((image / "image.json").read_bytes())
    (image / "image.json").write_bytes(orjson.dumps({**told, "store": {}}))
    (image / "store.db").unlink()
    assert load_image(image).rows == Rows()


# -- evidence ------------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_scope_and_key() -> None:
    history = [call("k1"), call("k1"), call("k1", "other/demo/counter"), Record(2, "worker#1", "decided")]
    assert Evidence(Rows(), history=history).calls == {
        ("default/demo/counter", "k1"): 2,
        ("other/demo/counter", "k1"): 1,
    }


def test_what_was_heard_and_who_was_killed() -> None:
    history = [
        Record(1, "client", "heard", {"subject": "s", "msg_id": "m1", "body": "é"}),
        Record(2, "client", "heard", {"subject": "s", "msg_id": "m2", "body_base64": "/wA="}),
        Record(3, "worker#1", "exit", {"status": -9}),
        Record(4, "worker#2", "exit", {"status": 0}),
        Record(5, "worker#3", "exit", {"status": -15}),
    ]
    evidence = Evidence(Rows(), history=history)
    assert evidence.received == [("m1", "é".encode()), ("m2", b"\xff\x00")]
    assert evidence.kills == 1


def test_envelopes_are_objects_or_nothing() -> None:
    assert envelope_of(output(b'{"id":"c1"}')) == {"id": "c1"}
    assert envelope_of(StoredMessage(1, "s", "m", b"[1]")) == {}
    assert envelope_of(output(b"\xff")) == {}


# -- what is sent --------------------------------------------------------------------------------------------------


def test_what_is_sent_is_known_by_its_own_words() -> None:
    envelope = command(SCOPE, "add", 1, {"amount": 1}, entity_id="a")
    sent = Sent(envelope)
    assert (sent.key, sent.digest, sent.scope) == ("k1", payload_hash(envelope), SCOPE)
    assert sent.subject == "cmd.default.demo.counter.add"
    assert orjson.loads(sent.body)["id"] == "c1"
    assert Sent(command(SCOPE, "get", 2, idempotency_key=None)).key == ""
    elsewhere = Scope("other", "demo", "counter")
    assert Sent(envelope, at=elsewhere).subject == "cmd.other.demo.counter.add"

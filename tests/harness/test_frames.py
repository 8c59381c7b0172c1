"""Frames of NATS as a proxy sees them: nothing is lost between them, and each is what the protocol makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.faults.frames import KINDS, LINE_MAX, PAYLOAD_MAX, Conversation, Frame, FrameError, FrameParser
from chaos.plan import FRAMES
from meshforge_trio.broker.frames import hpub, pub

ACK = "$JS.ACK.COMMANDS.t_consumer.2.17.9.1700000000.0"
PULL = "$JS.API.CONSUMER.MSG.NEXT.COMMANDS.t_consumer"
INBOX = "_INBOX.abc.1"
PUBACK = b'{"stream":"EVENTS","seq":7}'
LIMIT = 1 << 20

#: A busy machine is no failure.
UNTIMED = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

subjects = st.from_regex(r"(evt|cmd|failed|other|\$JS\.ACK|MSG|PUB)(\.[a-zA-Z0-9_-]{1,8}){1,4}", fullmatch=True)
#: Payloads that look like the protocol: line ends, verbs, sizes.
bodies = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            [b"\r\n", b"\n", b"PING\r\n", b"PUB evt.a 3\r\nabc\r\n", b"-ERR 'x'", b"+OK", b"MSG a 1 2", PUBACK]
        ),
        max_size=5,
    ).map(b"".join),
)
replies = st.sampled_from(["", INBOX, "_INBOX.abc.2"])
blocks = st.sampled_from(
    [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: m1\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\nA:b\r\nC: \r\n\r\n",
    ]
)
sizes = st.sampled_from([b"%d", b"00%d"])


@st.composite
def with_payload(draw: st.DrawFn, verb: bytes, middle: bytes = b"") -> bytes:
    """PUB or MSG, with or without headers, in capitals or not, with one space or more."""
    space = draw(st.sampled_from([b" ", b"  ", b"\t"]))
    subject, reply, body = draw(subjects).encode(), draw(replies).encode(), draw(bodies)
    size = draw(sizes)
    head = [
        draw(st.sampled_from([verb, verb.lower()])),
        subject,
        *([middle] if middle else []),
        *([reply] if reply else []),
    ]
    if draw(st.booleans()):
        block = draw(blocks)
        head = [(b"H" if head[0].isupper() else b"h") + head[0], *head[1:], size % len(block)]
        body = block + body
    return space.join([*head, size % len(body)]) + b"\r\n" + body + b"\r\n"


to_server = st.one_of(
    with_payload(b"PUB"),
    st.sampled_from(
        [
            b'CONNECT {"verbose":false,"name":"a b"}\r\n',
            b"SUB _INBOX.abc.*  7\r\n",
            b"UNSUB 7\r\n",
            b"PING\r\n",
            b"PONG\n",
        ]
    ),
)
to_client = st.one_of(
    with_payload(b"MSG", b"7"),
    st.sampled_from([b'INFO {"a":"b c"}\r\n', b"+OK\r\n", b"-ERR 'Stale Connection'\r\n", b"PING\r\n", b"pong\r\n"]),
)
cuts = st.lists(st.integers(0, 600), max_size=12)


def chunks(stream: bytes, cuts: Sequence[int]) -> Sequence[bytes]:
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(places)]


def told(frames: Sequence[Frame]) -> list[tuple[object, ...]]:
    return [(f.kind, f.name, f.raw, f.subject, f.reply, f.msg_id, f.headers, f.body, f.seq) for f in frames]


def parser_to(server: bool) -> FrameParser:
    """One direction of a conversation in which a publish waits for its answer on each inbox, twice."""
    wire = Conversation()
    for inbox in (INBOX, "_INBOX.abc.2") * 2:
        wire.to_server.feed(pub("evt.a.b.c.d", inbox, b""))
    return wire.to_server if server else wire.to_client


@UNTIMED
@given(
    st.one_of(
        st.tuples(st.just(True), st.lists(to_server, max_size=8)),
        st.tuples(st.just(False), st.lists(to_client, max_size=8)),
    ),
    cuts,
)
def test_frames_are_the_bytes_however_they_are_cut(spoken: tuple[bool, list[bytes]], cuts: list[int]) -> None:
    server, raws = spoken
    stream = b"".join(raws)
    whole, cut = parser_to(server), parser_to(server)
    frames = [frame for chunk in chunks(stream, cuts) for frame in cut.feed(chunk)]
    assert [frame.raw for frame in frames] == raws
    assert told(frames) == told(whole.feed(stream))
    assert cut.release() == b""


@UNTIMED
@given(
    st.booleans(),
    st.lists(
        st.one_of(to_server, to_client, st.binary(max_size=20), st.sampled_from([b"\r\n", b" ", b"PUB", b"MSG a"]))
    ),
    cuts,
)
def test_nothing_is_lost_where_it_is_not_understood(server: bool, pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces)
    parser, whole = parser_to(server), parser_to(server)
    seen, failed = b"", False
    frames: list[Frame] = []
    for chunk in chunks(stream, cuts):
        try:
            read, rest = parser.feed(chunk), b""
        except FrameError as error:
            read, rest, failed = error.frames, error.rest, True
        frames += read
        seen += b"".join(frame.raw for frame in read) + rest
    assert seen + parser.release() == stream
    try:
        expected, fails = whole.feed(stream), False
    except FrameError as error:
        expected, fails = error.frames, True
    assert (told(frames), failed) == (told(expected), fails)


def sent(frame: bytes) -> Frame:
    (found,) = Conversation().to_server.feed(frame)
    return found


@pytest.mark.parametrize(
    ("frame", "kind", "name", "seq"),
    [
        (pub("cmd.t.w.a.do", "", b"x"), "publish", "publish", 0),
        (pub("evt.t.w.a.done", INBOX, b"x"), "publish", "publish", 0),
        (pub("failed.cmd.t.w.a.do", INBOX, b"x"), "publish", "publish", 0),
        (hpub("evt.t.w.a.done", INBOX, "m", {}, b"x", limit=LIMIT), "publish", "publish", 0),
        (
            hpub("evt.t.w.a.done", "", "m", {"Nats-Expected-Stream": "EVENTS"}, b"x", limit=LIMIT),
            "publish",
            "publish",
            0,
        ),
        (hpub("evt.t.w.a.done", "", "m", {"Nats-Expected-Stream": "-"}, b"x", limit=LIMIT), "other", "echo", 0),
        (pub("events.t", "", b"x"), "other", "PUB", 0),
        (pub("_INBOX.probe", "", b"+ACK"), "other", "PUB", 0),
        (pub(PULL, INBOX, b"{}"), "pull", "pull", 0),
        (pub("$JS.API.STREAM.INFO.EVENTS", INBOX, b""), "other", "PUB", 0),
        (pub(ACK, "", b"+ACK"), "ack", "ack", 17),
        (pub(ACK, INBOX, b"+ACK"), "ack", "ack", 17),
        (pub(ACK, "", b""), "ack", "ack", 17),
        (pub(ACK, "", b"-NAK"), "nak", "nak", 17),
        (pub(ACK, "", b'-NAK {"delay":1000}'), "nak", "nak", 17),
        (pub(ACK, "", b"+WPI"), "extend", "extend", 17),
        (pub(ACK, "", b"+TERM"), "other", "PUB", 17),
        (b"PING\r\n", "other", "PING", 0),
        (b"connect {}\r\n", "other", "CONNECT", 0),
    ],
)
def test_what_a_client_sends(frame: bytes, kind: str, name: str, seq: int) -> None:
    found = sent(frame)
    assert (found.kind, found.name, found.seq, found.raw) == (kind, name, seq, frame)


def test_what_a_publish_carries() -> None:
    found = sent(hpub("evt.t.w.a.done", INBOX, "m1", {"traceparent": "x"}, b'{"id":"e1"}', limit=LIMIT))
    assert (found.subject, found.reply, found.msg_id, found.body) == ("evt.t.w.a.done", INBOX, "m1", b'{"id":"e1"}')
    assert found.headers.startswith(b"NATS/1.0\r\n")
    assert found.envelope_id == "e1"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"id":7}', b"\xff", b'{"key":"id"}'])
def test_a_body_that_is_no_envelope_has_no_id(body: bytes) -> None:
    assert sent(pub("evt.t.w.a.done", "", body)).envelope_id == ""


def test_a_subject_that_is_no_text_can_still_be_written_down() -> None:
    assert sent(b"PUB evt.\xff\xfe 1\r\nx\r\n").subject.encode()


def msg(subject: str, reply: str, body: bytes, block: bytes = b"") -> bytes:
    if block:
        return f"HMSG {subject} 7 {reply} {len(block)} {len(block) + len(body)}\r\n".encode() + block + body + b"\r\n"
    return f"MSG {subject} 7 {reply} {len(body)}\r\n".encode() + body + b"\r\n"


def test_a_delivery_tells_its_sequence() -> None:
    block = b"NATS/1.0\r\nNats-Msg-Id:m1\r\n\r\n"
    (found,) = Conversation().to_client.feed(msg("cmd.t.w.a.do", ACK, b'{"id":"c1"}', block))
    assert (found.kind, found.seq, found.msg_id, found.envelope_id) == ("delivery", 17, "m1", "c1")


def answers(published: Sequence[bytes], *received: bytes) -> list[tuple[str, str, int]]:
    """Kind, Msg-Id and sequence of what comes back after `published` was sent."""
    wire = Conversation()
    wire.to_server.feed(b"".join(published))
    return [(found.kind, found.msg_id, found.seq) for found in wire.to_client.feed(b"".join(received))]


def publish(msg_id: str, reply: str = INBOX, **headers: str) -> bytes:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return hpub("evt.t.w.a.done", reply, msg_id, more, b"x", limit=LIMIT)


def echo(msg_id: str) -> bytes:
    return publish(msg_id, Nats_Expected_Stream="-")


REFUSED = b'{"error":{"code":400,"err_code":10060,"description":"x"},"stream":"EVENTS","seq":0}'
NOBODY = msg(INBOX, "", b"", b"NATS/1.0 503\r\n\r\n")
OTHER = ("other", "", 0)


def test_a_puback_is_the_answer_to_a_publish() -> None:
    assert answers([publish("m1")], msg(INBOX, "", PUBACK)) == [("puback", "m1", 7)]
    assert answers([publish("m1")], msg(INBOX, "", REFUSED)) == [("puback", "m1", 0)]


def test_what_only_looks_like_a_puback_is_none() -> None:
    assert answers([publish("m1")], msg("_INBOX.other", "", PUBACK)) == [OTHER]
    assert answers([pub("$JS.API.STREAM.INFO.EVENTS", INBOX, b"")], msg(INBOX, "", PUBACK)) == [OTHER]
    assert answers([publish("m1")], msg("evt.t.w.a.done", INBOX, PUBACK)) == [OTHER]


def test_a_publish_is_answered_once() -> None:
    assert answers([publish("m1")], msg(INBOX, "", PUBACK) * 2) == [("puback", "m1", 7), OTHER]
    assert answers([publish("m1"), publish("m2")], msg(INBOX, "", PUBACK) * 3) == [
        ("puback", "m1", 7),
        ("puback", "m2", 7),
        OTHER,
    ]


def test_a_core_subscriber_that_answers_first_takes_nothing_from_the_stream() -> None:
    assert answers([publish("m1")], msg(INBOX, "", b"{}"), msg(INBOX, "", b"hi"), msg(INBOX, "", PUBACK)) == [
        OTHER,
        OTHER,
        ("puback", "m1", 7),
    ]


def test_a_subject_no_stream_takes_has_no_puback() -> None:
    assert answers([publish("m1")], NOBODY, msg(INBOX, "", PUBACK)) == [OTHER, OTHER]


def test_the_refusal_of_an_echo_is_no_puback() -> None:
    assert answers([echo("m1")], msg(INBOX, "", REFUSED)) == [OTHER]
    assert answers([publish("m1"), echo("m1"), publish("m2")], msg(INBOX, "", PUBACK), msg(INBOX, "", REFUSED) * 2) == [
        ("puback", "m1", 7),
        OTHER,
        ("puback", "m2", 0),
    ]


@pytest.mark.parametrize(
    "garbage",
    [
        b"WHAT is this\r\n",
        b"\r\n",
        b"\n",
        b" PING\r\n",
        b"PUB evt.a\r\n",
        b"PUB evt.a x y 3\r\nabc\r\n",
        b"PUB evt.a -3\r\nabc\r\n",
        b"PUB evt.a three\r\nabc\r\n",
        b"PUB evt.a 3\r\nabcd\r\n",
        b"HPUB evt.a 12 3\r\nabc\r\n",
        b"PUB evt.a %d\r\n" % (PAYLOAD_MAX + 1),
        b"PUB evt.a 99999999999999999999\r\n",
        b"MSG evt.a 7 3\r\nabc\r\n",
        b"CONNECT " + b"x" * LINE_MAX,
        b"CONNECT " + b"x" * LINE_MAX + b"\r\n",
        # A TLS handshake has no line end to wait for, nor do these.
        b"\x16\x03\x01\x02\x00\x01",
        b"X",
        b"PINK",
        b"PUBLISH ",
        b" ",
        b"\r",
    ],
)
def test_garbage_is_given_back_whole(garbage: bytes) -> None:
    parser = Conversation().to_server
    with pytest.raises(FrameError) as caught:
        parser.feed(b"PING\r\n" + garbage)
    assert [frame.raw for frame in caught.value.frames] == [b"PING\r\n"]
    assert caught.value.rest == garbage
    with pytest.raises(FrameError) as caught:
        parser.feed(b"PING\r\n")
    assert (caught.value.frames, caught.value.rest, parser.release()) == ([], b"PING\r\n", b"")


def test_what_is_not_whole_is_held_and_can_be_let_go() -> None:
    parser = Conversation().to_server
    assert parser.feed(b"PUB evt.a 5\r\nhe") == []
    assert parser.feed(b"ll") == []
    assert parser.release() == b"PUB evt.a 5\r\nhell"
    (found,) = parser.feed(b"PING\r\n")
    assert found.name == "PING"


def test_plans_name_the_same_kinds() -> None:
    assert set(KINDS) == set(FRAMES)

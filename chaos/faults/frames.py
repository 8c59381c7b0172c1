"""The NATS protocol on the wire, frame by frame, without any I/O: what a proxy needs to know of what passes.

Bytes go in as they arrive, frames come out whole. The `raw` of all frames, put together, are the bytes that went in.

    to the server   PUB and HPUB:  publish, echo, pull, ack, nak, extend   the rest: CONNECT, SUB, UNSUB, PING, PONG
    to the client   MSG and HMSG:  puback, delivery                        the rest: INFO, +OK, -ERR, PING, PONG
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import orjson

from meshforge_trio.broker.consumer import parse_ack_subject
from meshforge_trio.broker.frames import status_of

__all__ = ["KINDS", "LINE_MAX", "PAYLOAD_MAX", "Conversation", "Frame", "FrameError", "FrameParser"]

#: Kinds of frames that faults may befall; whatever is none of these is of the kind `other`.
KINDS: Final = ("publish", "puback", "pull", "delivery", "ack", "nak", "extend")
#: Bytes of a control line. A server takes 4096 from a client; its own INFO may be longer.
LINE_MAX: Final = 1 << 16
#: Bytes of headers and body together, the most a server can be set to.
PAYLOAD_MAX: Final = 1 << 26

# Bytes in which every verb can be told.
_VERB_MAX: Final = 16
_PUBLISHED: Final = (b"cmd.", b"evt.", b"failed.")
_PULL: Final = b"$JS.API.CONSUMER.MSG.NEXT."
_ACK: Final = b"$JS.ACK."
#: What an ACK may say: nothing at all, too.
_ACKED: Final = frozenset({b"", b"+ACK", b"+OK"})
_NO_RESPONDERS: Final = 503


@attrs.define(eq=False)
class Frame:
    """One frame. `raw` is all of it.

    `name` is the kind, or for the kind `other` the verb, or `echo`: a message that is published so that no stream
    stores it. `msg_id` of a puback is that of the message it answers. `seq` is the stream sequence that a puback, a
    delivery, an ack, a nak or an extend tells; 0 if there is none.
    """

    kind: str
    name: str
    raw: bytes
    subject: str = ""
    reply: str = ""
    msg_id: str = ""
    headers: bytes = b""
    body: bytes = b""
    seq: int = 0

    @property
    def envelope_id(self) -> str:
        """The `id` in a body that is a JSON object, else empty."""
        found = _json_object(self.body).get("id")
        return found if isinstance(found, str) else ""


class FrameError(ValueError):
    """Bytes that are no frame, or one above the limits.

    `frames` are those that were whole before, `rest` is everything from the first byte that was not understood.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.frames: list[Frame] = []
        self.rest = b""


@attrs.frozen
class _Payload:
    """The form of a verb that is followed by a payload: subject, `numbers` of subscriptions, reply or none, sizes."""

    numbers: int
    has_headers: bool


@attrs.define(eq=False)
class _Read:
    """A frame with a payload as it was read, before anybody asks what it means."""

    verb: str
    raw: bytes
    subject: bytes
    reply: bytes
    headers: bytes
    body: bytes

    def frame(self, kind: str, name: str, msg_id: str, seq: int = 0) -> Frame:
        """The frame it is."""
        subject = self.subject.decode(errors="replace")
        reply = self.reply.decode(errors="replace")
        return Frame(kind, name, self.raw, subject, reply, msg_id, self.headers, self.body, seq)


class FrameParser:
    """One direction of a connection. Made by `Conversation`."""

    def __init__(
        self, lines: frozenset[bytes], payloads: Mapping[bytes, _Payload], meaning: Callable[[_Read], Frame]
    ) -> None:
        self._lines = lines
        self._payloads = payloads
        self._verbs = lines | payloads.keys()
        self._meaning = meaning
        self._held: list[bytes] = []
        self._size = 0
        # Below this many bytes the first frame held cannot be whole.
        self._needed = 0
        self._failed = ""

    def release(self) -> bytes:
        """Hand out what is held because its frame is not whole yet, and forget it."""
        rest = b"".join(self._held)
        self._hold(b"")
        self._needed = 0
        return rest

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes and return the frames that are whole now, in order.

        Raises:
            FrameError: something is no frame. What was held comes with the error, and every later call raises too.
        """
        if self._failed:
            raise self._error(self._failed, [], chunk)
        self._held.append(chunk)
        self._size += len(chunk)
        if self._size < self._needed:
            return []
        buffer = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        frames: list[Frame] = []
        at = 0
        self._needed = 0
        try:
            while at < len(buffer) and (frame := self._next(buffer, at)) is not None:
                frames.append(frame)
                at += len(frame.raw)
        except FrameError as error:
            self._failed = str(error)
            self._hold(b"")
            raise self._error(self._failed, frames, buffer[at:]) from None
        self._hold(buffer[at:] if at else buffer)
        return frames

    def _hold(self, rest: bytes) -> None:
        self._held = [rest] if rest else []
        self._size = len(rest)

    @staticmethod
    def _error(reason: str, frames: list[Frame], rest: bytes) -> FrameError:
        error = FrameError(reason)
        error.frames, error.rest = frames, rest
        return error

    def _next(self, buffer: bytes, at: int) -> Frame | None:
        """The frame at `at`, or `None` if it is not whole."""
        end = buffer.find(b"\n", at, at + LINE_MAX)
        if end < 0:
            self._check_beginning(buffer[at : at + LINE_MAX])
            return None
        words = buffer[at:end].split()
        # A line that begins with a space has no verb.
        verb = words[0].upper() if words and buffer.startswith(words[0], at) else b""
        payload = self._payloads.get(verb)
        if payload is not None:
            return self._with_payload(buffer, at, end + 1, words, payload)
        if verb not in self._lines:
            raise FrameError(f"{buffer[at:end]!r:.60} is no line of the protocol")
        return Frame("other", verb.decode(), buffer[at : end + 1])

    def _check_beginning(self, line: bytes) -> None:
        """Whether a line without its end may still become one: else whoever waits for it would wait for ever."""
        if len(line) >= LINE_MAX:
            raise FrameError(f"{line!r:.60}... has no end within {LINE_MAX} bytes")
        head = line[:_VERB_MAX]
        words = head.split(maxsplit=1)
        word = words[0].upper() if words and head.startswith(words[0]) else b""
        unfinished = len(word) == len(head) and any(verb.startswith(word) for verb in self._verbs)
        if not unfinished and word not in self._verbs:
            raise FrameError(f"{line!r:.60} is no beginning of a line of the protocol")

    def _with_payload(
        self, buffer: bytes, at: int, start: int, words: Sequence[bytes], payload: _Payload
    ) -> Frame | None:
        """The frame at `at` with the payload at `start`, or `None` if that is not whole."""
        sizes = words[-2:] if payload.has_headers else words[-1:]
        spare = len(words) - 2 - payload.numbers - len(sizes)
        if spare not in (0, 1) or not all(size.isdigit() and len(size) < 10 for size in sizes):
            raise FrameError(f"{buffer[at : start - 1]!r:.60} lacks subject or size")
        header_size, size = (0 if not payload.has_headers else int(sizes[0])), int(sizes[-1])
        if size > PAYLOAD_MAX or header_size > size:
            raise FrameError(f"{buffer[at : start - 1]!r:.60}: no message is of that size")
        stop = start + size
        if len(buffer) < stop + 2:
            self._needed = stop + 2 - at
            return None
        if buffer[stop : stop + 2] != b"\r\n":
            raise FrameError(f"{buffer[at : start - 1]!r:.60}: the message does not end where it should")
        body = start + header_size
        return self._meaning(
            _Read(
                words[0].upper().decode(),
                buffer[at : stop + 2],
                words[1],
                words[2 + payload.numbers] if spare else b"",
                buffer[start:body],
                buffer[body:stop],
            )
        )


class Conversation:
    """Both directions of one connection, and what ties them: a puback is the answer to a publish."""

    def __init__(self) -> None:
        pubs = {b"PUB": _Payload(0, False), b"HPUB": _Payload(0, True)}
        msgs = {b"MSG": _Payload(1, False), b"HMSG": _Payload(1, True)}
        self.to_server = FrameParser(frozenset({b"CONNECT", b"SUB", b"UNSUB", b"PING", b"PONG"}), pubs, self._sent)
        self.to_client = FrameParser(frozenset({b"INFO", b"+OK", b"-ERR", b"PING", b"PONG"}), msgs, self._received)
        # By reply subject, in the order in which the server answers: whether it is a publish, and its Msg-Id.
        self._unanswered: dict[bytes, deque[tuple[bool, str]]] = {}

    def _sent(self, read: _Read) -> Frame:
        subject = read.subject
        if subject.startswith(_ACK):
            kind = _verdict(read.body)
            return read.frame(kind, read.verb if kind == "other" else kind, "", _stream_seq(subject))
        if subject.startswith(_PULL):
            return read.frame("pull", "pull", "")
        msg_id = _header(read.headers, b"Nats-Msg-Id")
        if not subject.startswith(_PUBLISHED):
            return read.frame("other", read.verb, msg_id)
        echo = _header(read.headers, b"Nats-Expected-Stream") == "-"
        if read.reply:
            self._unanswered.setdefault(read.reply, deque()).append((not echo, msg_id))
        return read.frame("other", "echo", msg_id) if echo else read.frame("publish", "publish", msg_id)

    def _received(self, read: _Read) -> Frame:
        if read.reply.startswith(_ACK):
            return read.frame("delivery", "delivery", _header(read.headers, b"Nats-Msg-Id"), _stream_seq(read.reply))
        if read.subject in self._unanswered and (answer := self._answer(read)) is not None:
            return answer
        return read.frame("other", read.verb, _header(read.headers, b"Nats-Msg-Id"))

    def _answer(self, read: _Read) -> Frame | None:
        """The puback that a message on the reply subject of a publish is, if it is one."""
        told = _json_object(read.body)
        acknowledged = "stream" in told and ("seq" in told or "error" in told)
        if not acknowledged and status_of(read.headers) != _NO_RESPONDERS:
            return None  # a core subscriber has answered, the stream has not yet
        unanswered = self._unanswered[read.subject]
        published, msg_id = unanswered.popleft()
        if not unanswered:
            del self._unanswered[read.subject]
        if not acknowledged or not published:
            return None
        seq = told.get("seq")
        return read.frame("puback", "puback", msg_id, seq if isinstance(seq, int) and "error" not in told else 0)


def _verdict(body: bytes) -> str:
    if body in _ACKED or body.startswith(b"+NXT"):
        return "ack"
    if body.startswith(b"-NAK"):
        return "nak"
    return "extend" if body == b"+WPI" else "other"


def _stream_seq(ack_subject: bytes) -> int:
    place = parse_ack_subject(ack_subject)
    return 0 if place is None else place[1]


def _header(block: bytes, name: bytes) -> str:
    """The value of a header, else empty."""
    at = block.find(b"\r\n%b:" % name)
    if at < 0:
        return ""
    at += len(name) + 3
    return block[at : block.find(b"\r\n", at)].strip().decode(errors="replace")


def _json_object(body: bytes) -> Mapping[str, Any]:
    if not body.startswith(b"{"):
        return {}
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}

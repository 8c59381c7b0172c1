"""The NATS protocol as bytes: frames that are written, and messages that are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from nats.protocol.parser import Parser

from meshforge_trio.errors import Poison

__all__ = ["MessageParser", "Receiver", "checked_subject", "hpub", "pub", "status_of"]

#: Called with subject, reply, headers (`None` if the message has none) and body. Must not raise and must not wait.
Receiver = Callable[[bytes, bytes, bytes | None, bytes], None]

# A control line above 4096 bytes makes the server close the connection.
_SUBJECT_LENGTH_MAX: Final = 1024


@lru_cache(maxsize=8192)
def checked_subject(subject: str) -> str:
    """`subject`, if it can stand in a frame. Raises `Poison` otherwise."""
    if not subject or len(subject) > _SUBJECT_LENGTH_MAX or any(c.isspace() or ord(c) < 0x20 for c in subject):
        raise Poison(f"{subject!r:.100} cannot be sent as a subject", code="bad_subject", field="subject")
    return subject


def pub(subject: str, reply: str, body: bytes) -> bytes:
    """A PUB frame; `reply` may be empty.

    Raises:
        Poison: the subject would break the protocol.
    """
    return b"%b%b\r\n" % (f"PUB {checked_subject(subject)} {reply} {len(body)}\r\n".encode(), body)


def hpub(subject: str, reply: str, msg_id: str, headers: Mapping[str, str], body: bytes, *, limit: int) -> bytes:
    """An HPUB frame with `Nats-Msg-Id` and `headers`; `limit` is the server's max_payload.

    Raises:
        Poison: subject or headers would break the protocol, or headers and body together exceed `limit`
            (the server answers that by closing the connection).
    """
    block = f"NATS/1.0\r\nNats-Msg-Id: {msg_id}\r\n"
    if headers:
        block += "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    block += "\r\n"
    lines = len(headers) + 3
    if not block.isascii() or block.count("\n") != lines or block.count("\r") != lines:
        raise Poison(f"headers of {msg_id!r:.100} are not plain ASCII", code="bad_header", field="headers")
    size = len(block) + len(body)
    if size > limit:
        raise Poison(
            f"message {msg_id!r:.100} has {size} bytes, the server takes {limit}", code="too_large", field="payload"
        )
    control = f"HPUB {checked_subject(subject)} {reply} {len(block)} {size}\r\n{block}"
    return b"%b%b\r\n" % (control.encode(), body)


def status_of(headers: bytes | None) -> int:
    """The number in a status line such as `NATS/1.0 408 Request Timeout`; 0 for the headers of a message."""
    if headers is None or headers[8:9] != b" ":
        return 0
    code = headers[9:12]
    return int(code) if code.isdigit() else 0


class MessageParser(Parser):
    """nats-py's parser with a short way for messages, which are nearly all that arrives.

    MSG and HMSG go to the receiver of their subscription's number, without a coroutine or a regular expression
    each; every other line goes to nats-py. A message for a subscription that was just given up is nobody's.
    """

    def __init__(self, client: Any, receivers: Mapping[int, Receiver]) -> None:
        super().__init__(client)
        self._receivers = receivers

    def reset(self) -> None:
        """Forget what is half read."""
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        """Take the next bytes; what is incomplete waits for more."""
        data = self._rest + data if self._rest else bytes(data)
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            if data.startswith(b"MSG ", at):
                subject, sid, *reply, size = data[at + 4 : end].split(b" ")
                start, header = end + 2, 0
            elif data.startswith(b"HMSG ", at):
                subject, sid, *reply, header_size, size = data[at + 5 : end].split(b" ")
                start, header = end + 2, int(header_size)
            else:
                self._rest = b""
                await super().parse(data[at : end + 2])
                at = end + 2
                continue
            stop = start + int(size)
            if len(data) < stop + 2:
                break
            receiver = self._receivers.get(int(sid))
            if receiver is not None:
                body = start + header
                headers = data[start:body] if header else None
                receiver(subject, reply[0] if reply else b"", headers, data[body:stop])
            at = stop + 2
        self._rest = data[at:]

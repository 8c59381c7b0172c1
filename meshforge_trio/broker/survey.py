"""JetStream as it stands, asked on a connection of its own: read, never changed. For health and doctor."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import attrs

from meshforge_trio.broker.api import JetStreamApi, headers_of
from meshforge_trio.broker.bridge import Connection, ConnectOptions, connect
from meshforge_trio.errors import SessionLost

__all__ = ["Found", "Survey", "dial_survey", "open_survey", "unix_time"]

_NOT_FOUND: Final = 404
_NAME: Final = "meshforge-survey"


@attrs.frozen
class Found:
    """A stored message without its body. `at` is when the stream took it, in wall-clock seconds of the server."""

    seq: int
    subject: str
    msg_id: str
    at: float


class Survey:
    """Questions about streams and consumers. Made by `open_survey`.

    Every method raises `SessionLost` when the connection ends or the server does not answer within five seconds, and
    `Misconfigured` when the account has no JetStream.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._api = JetStreamApi(connection)

    @property
    def server(self) -> Mapping[str, Any]:
        """What the server said in INFO."""
        return self._connection.info

    @property
    def lost(self) -> str | None:
        """Why the connection ended; `None` while it lives."""
        return self._connection.lost

    async def aclose(self) -> None:
        """End the connection."""
        await self._connection.aclose()

    async def account(self) -> dict[str, Any]:
        """Usage, limits and API level of the account."""
        return await self._api.request("INFO")

    async def stream(self, name: str) -> dict[str, Any] | None:
        """STREAM.INFO, or `None` if there is no such stream."""
        return await self._info(f"STREAM.INFO.{name}")

    async def consumer(self, stream: str, name: str) -> dict[str, Any] | None:
        """CONSUMER.INFO, or `None` if there is no such stream or consumer."""
        return await self._info(f"CONSUMER.INFO.{stream}.{name}")

    async def consumers(self, stream: str) -> Sequence[dict[str, Any]]:
        """Every consumer of a stream that exists."""
        found: list[dict[str, Any]] = []
        while True:
            page = await self._info(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            if page is None or not page.get("consumers"):
                return found
            found += page["consumers"]
            if len(found) >= page.get("total", 0):
                return found

    async def streams_taking(self, subject: str) -> Sequence[str]:
        """Names of the streams whose subjects overlap with `subject`."""
        page = await self._info("STREAM.NAMES", {"subject": subject})
        return [] if page is None else sorted(page.get("streams") or [])

    async def first_from(self, stream: str, subject: str, seq: int) -> Found | None:
        """The first message that matches `subject` at sequence `seq` or above."""
        reply = await self._info(f"STREAM.MSG.GET.{stream}", {"seq": max(seq, 1), "next_by_subj": subject})
        return None if reply is None else _found(reply["message"])

    async def message(self, stream: str, seq: int) -> Found | None:
        """The message at a sequence; `None` where it is gone or was never there."""
        reply = await self._info(f"STREAM.MSG.GET.{stream}", {"seq": seq})
        return None if reply is None else _found(reply["message"])

    async def _info(self, verb: str, body: object = None) -> dict[str, Any] | None:
        reply = await self._api.request(verb, body)
        error = reply.get("error")
        if error is None:
            return reply
        if error.get("code") == _NOT_FOUND:
            return None
        raise SessionLost(f"$JS.API.{verb}: {error.get('description', 'refused')} ({error.get('err_code', 0)})")


def _found(message: dict[str, Any]) -> Found:
    headers = headers_of(b64decode(message.get("hdrs", "")))
    return Found(message["seq"], message["subject"], headers.get("Nats-Msg-Id", ""), unix_time(message["time"]))


def unix_time(text: str) -> float:
    """A time of the server, as 2026-11-22T11:19:45.682134594Z, in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


async def dial_survey(options: ConnectOptions) -> Survey:
    """A connection for questions that the caller closes.

    Raises:
        SessionLost: no server could be reached.
        Misconfigured: no loop around the caller, or refused credentials.
    """
    return Survey(await connect(attrs.evolve(options, name=_NAME)))


@asynccontextmanager
async def open_survey(options: ConnectOptions) -> AsyncIterator[Survey]:
    """`dial_survey`, closed at the end."""
    survey = await dial_survey(options)
    try:
        yield survey
    finally:
        await survey.aclose()

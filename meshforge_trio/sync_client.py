"""The client for scripts that know nothing of Trio: the same calls, blocking."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import trio

from meshforge_trio.answers import Sent
from meshforge_trio.broker.bridge import ConnectOptions
from meshforge_trio.client import CommandFields, MeshClient, open_client
from meshforge_trio.codec import Codecs
from meshforge_trio.envelope import EventEnvelope, JsonObject, SecurityContext
from meshforge_trio.signing import Signer

__all__ = ["SyncMeshClient"]

_T = TypeVar("_T")


class SyncMeshClient:
    """A `MeshClient` in a thread of its own, from `with` to its end.

        with SyncMeshClient(url, tenant="acme", workspace="shop", principal=SecurityContext("kim", "user")) as mesh:
            answer = mesh.call("order", "create", {"items": 3}, entity_id="o-1")

    Any number of threads may share it. An interrupt (Ctrl-C) cancels the call it falls into.
    """

    def __init__(
        self,
        server: str | ConnectOptions,
        *,
        tenant: str,
        workspace: str,
        principal: SecurityContext,
        signer: Signer | None = None,
        codecs: Codecs | None = None,
    ) -> None:
        self._open = partial(
            open_client,
            server,
            tenant=tenant,
            workspace=workspace,
            principal=principal,
            signer=signer,
            codecs=codecs,
        )
        # A daemon, so that a script which never gets to close it can still end.
        self._thread = threading.Thread(target=self._run, name="meshforge-client", daemon=True)
        self._everything = trio.CancelScope()
        self._token: Future[trio.lowlevel.TrioToken] = Future()
        self._opened: Future[tuple[MeshClient, trio.Nursery]] = Future()
        self._lock = threading.Lock()
        self._asked: set[Future[Any]] = {self._token, self._opened}
        self._over = False
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        """Connect. Raises as `open_client`."""
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and return when the thread has ended. May be called again."""
        if self._thread.ident is None:
            return
        with suppress(trio.RunFinishedError, trio.ClosedResourceError):
            self._token.result().run_sync_soon(self._everything.cancel)
        self._thread.join()

    def send(
        self,
        agent: str,
        action: str,
        payload: JsonObject | None = None,
        *,
        timeout_s: float = 10.0,
        **fields: Unpack[CommandFields],
    ) -> Sent:
        """`MeshClient.send`. After `close` it raises `trio.ClosedResourceError`."""
        return self._ask(lambda mesh: mesh.send(agent, action, payload, timeout_s=timeout_s, **fields))

    def call(
        self,
        agent: str,
        action: str,
        payload: JsonObject | None = None,
        *,
        timeout_s: float = 30.0,
        resend_s: float = 2.0,
        raise_for_refusal: bool = False,
        **fields: Unpack[CommandFields],
    ) -> EventEnvelope:
        """`MeshClient.call`. After `close` it raises `trio.ClosedResourceError`."""
        return self._ask(
            lambda mesh: mesh.call(
                agent,
                action,
                payload,
                timeout_s=timeout_s,
                resend_s=resend_s,
                raise_for_refusal=raise_for_refusal,
                **fields,
            )
        )

    # -- in the caller's thread --------------------------------------------------------------------------------

    def _ask(self, work: Callable[[MeshClient], Awaitable[_T]]) -> _T:
        future: Future[_T] = Future()
        scope = trio.CancelScope()
        if self._thread.ident is None:
            raise trio.ClosedResourceError("the client was not opened")
        self._opened.result()
        token = self._token.result()
        with self._lock:
            if self._over:
                raise trio.ClosedResourceError("the client is closed") from self._failure
            self._asked.add(future)
        try:
            # Not `trio.from_thread`: its tasks would belong to no nursery of ours.
            token.run_sync_soon(self._begin, work, future, scope)
            return future.result()
        except trio.RunFinishedError:
            return future.result()  # the thread fails whatever it leaves behind
        except BaseException:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
            raise
        finally:
            with self._lock:
                self._asked.discard(future)

    # -- in the client's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._failure = error  # told to whoever waits, and to whoever asks later
        with self._lock:
            self._over = True
            unanswered = [future for future in self._asked if not future.done()]
        for future in unanswered:
            future.set_exception(self._failure or trio.ClosedResourceError("the client was closed"))

    async def _serve(self) -> None:
        self._token.set_result(trio.lowlevel.current_trio_token())
        with self._everything:
            async with self._open() as mesh, trio.open_nursery() as nursery:
                self._opened.set_result((mesh, nursery))
                await trio.sleep_forever()

    def _begin(
        self, work: Callable[[MeshClient], Awaitable[Any]], future: Future[Any], scope: trio.CancelScope
    ) -> None:
        mesh, nursery = self._opened.result()
        if not self._everything.cancel_called:  # else the thread is about to fail it
            nursery.start_soon(self._do, mesh, work, future, scope)

    async def _do(
        self,
        mesh: MeshClient,
        work: Callable[[MeshClient], Awaitable[Any]],
        future: Future[Any],
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            try:
                future.set_result(await work(mesh))
            except Exception as error:
                future.set_exception(error)

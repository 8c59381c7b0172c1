"""Walls between the sites of a process: what ends one of them leaves the others afloat.

What would end the process where it serves one site (a broken store, settings that contradict a guarantee, too many
crashes) stops one of several for as long as the process runs. Nothing is tried again: an I/O error must not be, and
the rest needs somebody to mend it first. They meet where they share the process itself: a handler that blocks the
event loop, memory, the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from meshforge_trio.errors import MeshForgeError, StoreBroken
from meshforge_trio.metrics import WorkerMetrics
from meshforge_trio.policy import worst, worst_code
from meshforge_trio.runtime import NotDrained, TooManyRestarts, exit_code
from meshforge_trio.sites import Site

__all__ = ["Bulkheads"]


class Bulkheads:
    """The walls of one process, and what went down behind them. A site that is `alone` has none: it is all there is."""

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._ended: list[BaseException] = []
        self._log = structlog.get_logger("meshforge")

    @contextmanager
    def around(self, site: Site, metrics: WorkerMetrics) -> Iterator[None]:
        """Keep within what a site raises; said once, as critical, and shown by its health.

        Raises:
            StoreBroken: it has gone through the wall, since others may be on that store.
        """
        with structlog.contextvars.bound_contextvars(**({} if self._alone else {"tenants": site.name})):
            try:
                yield
            except Exception as error:
                if self._alone or isinstance(worst(error), StoreBroken):
                    raise
                self._end([(site, metrics)], error)

    @contextmanager
    def around_store(self, several: Sequence[tuple[Site, WorkerMetrics]]) -> Iterator[None]:
        """Keep within what the sites on one store raise: broken for one of them, it is for all that were left."""
        try:
            yield
        except Exception as error:
            if self._alone:
                raise
            self._end(several, error)

    def _end(self, several: Sequence[tuple[Site, WorkerMetrics]], error: Exception) -> None:
        leaf = worst(error)
        for site, metrics in several:
            if not metrics.stopped:
                metrics.stop(leaf)
                self._tell(site, error, leaf)
        # What it was raised through holds sessions and caches, which nobody needs any more.
        leaf.__traceback__ = leaf.__cause__ = leaf.__context__ = None
        self._ended.append(leaf)

    def _tell(self, site: Site, error: Exception, leaf: BaseException) -> None:
        foreseen = isinstance(leaf, MeshForgeError | NotDrained | TooManyRestarts)
        self._log.critical(
            "tenants are no longer served",
            tenants=site.name,
            reason=str(leaf),
            exit_code=exit_code(leaf),
            do="mend it and restart the process: it tries nothing of them again, and goes on with its other tenants",
            exc_info=None if foreseen else error,
        )

    def end(self) -> None:
        """Call it once every site has ended. Raises the severest of what ended one before it had drained, if any."""
        if self._ended:
            codes = [exit_code(error) for error in self._ended]
            raise self._ended[codes.index(worst_code(codes))]

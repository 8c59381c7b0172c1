"""One case: a workload, a plan, a worker that dies of it, a successor that finishes. Judged twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import trio

from chaos.checkers import Judgement, judge
from chaos.evidence import Evidence, Sent, collect
from chaos.observer import Observer, open_observer
from chaos.plan import Plan
from chaos.world import ProcessWorld, WorldError, Zygote
from meshforge_trio.server import PrivateServer

__all__ = ["CaseResult", "run_case"]

_WORKERS_MAX = 12


@attrs.define(eq=False)
class CaseResult:
    """What a case showed. `unhit` are rules that never fired; with any of them the case proves nothing about it."""

    plan: Plan
    fired: Sequence[str]
    corpse: Sequence[Judgement]
    end: Sequence[Judgement]
    evidence: Evidence
    logs: str

    @property
    def unhit(self) -> Sequence[str]:
        return [str(rule) for rule in self.plan.rules if str(rule) not in self.fired]

    @property
    def broken(self) -> Sequence[Judgement]:
        """Guarantees that did not hold."""
        return [judgement for judgement in [*self.corpse, *self.end] if judgement.findings]

    def __str__(self) -> str:
        lines = [f"plan: {self.plan}", f"fired: {'; '.join(self.fired) or 'nothing'}"]
        for name, judgements in (("corpse", self.corpse), ("end", self.end)):
            lines += [f"{name}: {judgement}" for judgement in judgements if judgement.findings]
        return "\n".join([*lines, self.logs])


async def run_case(
    app: str,
    sent: Sequence[Sent],
    plan: Plan,
    zygote: Zygote,
    *,
    engine: Mapping[str, Any] | None = None,
    retry: Mapping[str, Any] | None = None,
    limit: int = 3,
    workspaces: Sequence[str] = ("default/demo",),
    timeout_s: float = 30.0,
) -> CaseResult:
    """Run the workload through workers that die by `plan`, judging the corpse after each death and the end.

    Raises:
        WorldError: it did not drain in time, or a worker ended in a way that was not planned.
    """
    corpse: list[Judgement] = []
    with PrivateServer() as server:
        async with (
            ProcessWorld(
                app,
                server=server,
                zygote=zygote,
                plan=plan,
                engine=engine,
                retry={"limit": limit or 3, **(retry or {})},
                workspaces=workspaces,
            ) as world,
            open_observer(server.url) as observer,
        ):
            await observer.send(sent)
            for _ in range(_WORKERS_MAX):
                worker = await world.spawn()
                with trio.move_on_after(timeout_s) as waited:
                    await world.serving(worker)
                    await observer.drained_or(worker.ended)
                if waited.cancelled_caught:
                    raise WorldError(f"not drained within {timeout_s:g} s\n{await _state(observer)}\n{_logs(world)}")
                if worker.status is None and await world.drain(worker) == 0:
                    break
                if not worker.killed:
                    raise WorldError(f"worker#{worker.number} ended with {worker.status}\n{_logs(world)}")
                evidence = await collect(observer.broker, world.store, sent, final=False, limit=limit)
                corpse.extend(judge(evidence))
            else:
                raise WorldError(f"{_WORKERS_MAX} workers did not finish\n{_logs(world)}")
            evidence = await collect(
                observer.broker,
                world.store,
                sent,
                final=True,
                limit=limit,
                calls=world.calls(),
                received=tuple(observer.received),
                kills=len(world.fired()),
            )
            return CaseResult(plan, world.fired(), corpse, judge(evidence), evidence, _logs(world))


async def _state(observer: Observer) -> str:
    return "\n".join(await observer.pending())


def _logs(world: ProcessWorld) -> str:
    return "\n".join(f"-- worker#{worker.number}: {worker.status}\n{world.tail(worker)}" for worker in world.workers)

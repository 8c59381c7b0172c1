"""The laboratory: servers, fork servers and replayers that many cases use, a few cases at a time."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import trio

from chaos.case import Case, play
from chaos.evidence import Evidence
from chaos.mutants.patch import Patch, patch_to_json
from chaos.replayer import Replayer, ReplayerError, open_replayer
from chaos.scratch import file_name, scratch_directory
from chaos.verdict import RunError, Status, Verdict, load_run, verdict_on
from chaos.zygote import WorldError, Zygote, open_zygote
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.errors import MeshForgeError
from meshforge_trio.server import PrivateServer

__all__ = ["TRIES", "Lab", "Outcome", "leaves", "open_lab"]

#: How often a plan is run that was written to be met.
TRIES: Final = 3

#: Other hash seeds than anybody's, each of which shifts the clock by its own days, and zones that never share a date.
_ELSEWHERE: Final = ((101, "Pacific/Kiritimati"), (202, "Etc/GMT+12"))
#: Of a case's own deadline; past it something of the harness hangs.
_PATIENCE: Final = 6
#: Far more than any run stores, and little enough to be filled by a fault in no time.
_SERVER_BYTES: Final = 96 << 20


@attrs.frozen
class Outcome:
    """What came of a case. `home` is its directory, if it was kept; `evidence` that of the end, if there was one.

    `tries` counts the runs it took: those before missed a rule, and nothing else was against them.
    """

    case: Case
    verdict: Verdict
    home: Path | None
    seconds: float
    evidence: Evidence | None = attrs.field(default=None, repr=False)
    logs: str = attrs.field(default="", repr=False)
    tries: int = 1

    @property
    def status(self) -> Status:
        """Of its verdict."""
        return self.verdict.status

    def __str__(self) -> str:
        kept = "" if self.home is None else f"\nrun directory: {self.home}"
        return f"plan: {self.case.plan}\n{self.verdict}\nreplay: {self.case.replay}{kept}\n{self.logs}"


class Lab:
    """Made by `open_lab`."""

    def __init__(
        self, nursery: trio.Nursery, servers: list[PrivateServer], reports: Path | None, *, keep: bool = False
    ) -> None:
        self._nursery = nursery
        self.closing = trio.Event()
        self._servers = servers
        self._free_in, self._free = trio.open_memory_channel[PrivateServer](len(servers))
        for server in servers:
            self._free_in.send_nowait(server)
        self._zygotes: dict[Patch | None, tuple[Zygote, trio.CancelScope]] = {}
        self._replayers: list[Replayer] = []
        self._rebuilds = 0
        self._opening = trio.Lock()
        self._reports = reports
        self._keeps_all = keep
        self.parallel = len(servers)

    async def run(self, case: Case, *, patch: Patch | None = None, keep: bool = False, tries: int = 1) -> Outcome:
        """Run one case, on a server of its own for the time. `patch` plants a bug; `keep` keeps what passes too.

        How many messages arrive together is up to the network, so a rule may miss the one turn that it was meant for:
        a case of which that is all that can be said is run again, until it was run `tries` times.

        Never raises for what goes wrong in it: that is in the verdict.
        """
        for nth in range(1, tries + 1):
            outcome = await self._run(case, patch, keep=keep)
            if nth == tries or not outcome.verdict.missed:
                return attrs.evolve(outcome, tries=nth)
            if outcome.home is not None:
                shutil.rmtree(outcome.home, ignore_errors=True)
        raise ValueError(f"tries is {tries}, it must be at least 1")

    async def _run(self, case: Case, patch: Patch | None, *, keep: bool) -> Outcome:
        server = await self._free.receive()
        home = Path(tempfile.mkdtemp(prefix="meshforge-run-", dir=scratch_directory()))
        began = time.monotonic()
        reasons = ["cancelled"]
        try:
            reasons = await self._play(case, server, patch, home, thorough=keep or self._keeps_all or patch is not None)
            verdict, evidence = _judged(home, case, reasons)
            logs = _logs(home) if verdict.status is not Status.PASS else ""
            kept = (
                self._keep(case, home, verdict, patch)
                if keep or self._keeps_all or verdict.status is not Status.PASS
                else None
            )
            return Outcome(case, verdict, kept, time.monotonic() - began, evidence, logs)
        finally:
            shutil.rmtree(home, ignore_errors=True)
            self._free_in.send_nowait(self._another(server) if reasons else server)

    async def run_all(
        self,
        cases: Sequence[Case],
        *,
        patch: Patch | None = None,
        note: Callable[[Outcome], None] = lambda _: None,
        tries: int = 1,
    ) -> Sequence[Outcome]:
        """Run many, as many at a time as there are servers; the outcomes are in the order of the cases."""
        outcomes: dict[int, Outcome] = {}

        async def run(number: int, case: Case) -> None:
            outcomes[number] = await self.run(case, patch=patch, tries=tries)
            note(outcomes[number])

        async with trio.open_nursery() as nursery:
            for number, case in enumerate(cases):
                nursery.start_soon(run, number, case)
        return [outcomes[number] for number in range(len(cases))]

    async def let_go(self, patch: Patch) -> None:
        """End the fork server of a planted bug. Call it when no case runs with it any more."""
        async with self._opening:
            if patch in self._zygotes:
                zygote, held = self._zygotes.pop(patch)
                zygote.end()
                held.cancel()

    async def _play(
        self, case: Case, server: PrivateServer, patch: Patch | None, home: Path, *, thorough: bool
    ) -> list[str]:
        reasons: list[str] = []
        try:
            with trio.move_on_after(case.deadline_s * _PATIENCE) as waited:
                server.start()
                zygote = await self._zygote(patch)
                await play(case, server, zygote, home)
                await self._rebuild(case, home, patch, thorough)
            if waited.cancelled_caught:
                reasons.append(f"the run did not end within {case.deadline_s * _PATIENCE:g} s")
        except* (MeshForgeError, WorldError, ReplayerError, OSError, RuntimeError, trio.TooSlowError) as errors:
            reasons += [f"{type(error).__name__}: {error}" for error in leaves(errors)]
        return reasons

    def _another(self, server: PrivateServer) -> PrivateServer:
        """In place of one in which a run that failed may have left something: the next run starts it."""
        server.kill()
        server.stop()
        fresh = _new_server()
        self._servers[self._servers.index(server)] = fresh
        return fresh

    async def _rebuild(self, case: Case, home: Path, patch: Patch | None, thorough: bool) -> None:
        """Have other processes compute the state hashes of the end; the judge compares with what workers recorded.

        The replayers take turns, but for a `thorough` rebuild: what is kept, and bugs, which must be caught.
        """
        end = _last_image(home)
        if end is None:
            return
        rebuilt: dict[str, list[str]] = {}
        self._rebuilds += 1
        replayers = await self._all_replayers()
        for replayer in replayers if thorough else [replayers[self._rebuilds % len(replayers)]]:
            hashes = await replayer.rebuild(end / "store.db", case.app, case.workspaces, patch=_of_agents(patch))
            for scope, value in hashes.items():
                rebuilt.setdefault(str(scope), []).append(value)
        (end / "rebuilt.json").write_bytes(orjson.dumps(rebuilt))

    async def _zygote(self, patch: Patch | None) -> Zygote:
        async with self._opening:
            if patch not in self._zygotes or self._zygotes[patch][0].gone:
                self._zygotes[patch] = await self._nursery.start(_hold, lambda: open_zygote(patch), self.closing)
            return self._zygotes[patch][0]

    async def _all_replayers(self) -> Sequence[Replayer]:
        async with self._opening:
            while len(self._replayers) < len(_ELSEWHERE):
                seed, zone = _ELSEWHERE[len(self._replayers)]
                opened = self._nursery.start(_hold, lambda: open_replayer(seed, zone), self.closing)  # noqa: B023
                replayer, _ = await opened
                self._replayers.append(replayer)
            return self._replayers

    def _keep(self, case: Case, home: Path, verdict: Verdict, patch: Patch | None) -> Path | None:
        if self._reports is None:
            return None
        kept = _new_directory(self._reports, case.name)
        shutil.copytree(home, kept, ignore=shutil.ignore_patterns("server-copy", "store"), dirs_exist_ok=True)
        if patch is not None:
            (kept / "patch.json").write_bytes(orjson.dumps(patch_to_json(patch)))
        (kept / "verdict.json").write_bytes(orjson.dumps(verdict.to_json(), option=orjson.OPT_INDENT_2))
        return kept


async def _hold(
    open_it: Callable[[], Any], closing: trio.Event, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep something open until `closing` or until the scope that is reported with it is cancelled.

    Whoever cancels the laboratory cancels its runs, and these need what is held here to end their processes.
    """
    with trio.CancelScope() as scope:
        async with open_it() as opened:
            task_status.started((opened, scope))
            await trio.lowlevel.checkpoint()
            scope.shield = True
            await closing.wait()


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group and in its groups; of another error that alone."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


def _judged(home: Path, case: Case, reasons: Sequence[str]) -> tuple[Verdict, Evidence | None]:
    """The verdict, and the evidence of the end if there is any."""
    try:
        run = load_run(home)
    except RunError as error:
        return Verdict(Status.INCONCLUSIVE, [*reasons, str(error)]), None
    verdict = verdict_on(run, invariants=case.invariants, reasons=reasons)
    return verdict, run.images[-1] if run.images else None


def _of_agents(patch: Patch | None) -> Patch | None:
    """What of a planted bug is rebuilt with: that of agents. The runtime that rebuilds is the true one."""
    edits = () if patch is None else [edit for edit in patch.edits if not edit.module.startswith("meshforge_trio.")]
    return Patch(patch.name, edits) if patch is not None and edits else None


def _last_image(home: Path) -> Path | None:
    """The image of the end, if it holds a store."""
    images = sorted(home.glob("image-*"), key=lambda path: int(path.name.split("-")[1]))
    return images[-1] if images and (images[-1] / "store.db").exists() else None


def _new_directory(where: Path, name: str) -> Path:
    """One that nobody else has, other processes included."""
    where.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        made = where / f"{file_name(name)}-{number}"
        with contextlib.suppress(FileExistsError):
            made.mkdir()
            return made
    raise AssertionError("unreachable")


def _logs(home: Path) -> str:
    logs = sorted(home.glob("worker-*.log"), key=lambda path: int(path.stem.split("-")[1]))
    return "\n".join(
        f"-- {path.stem}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-30:]) for path in logs
    )


def _new_server() -> PrivateServer:
    return PrivateServer(scratch=scratch_directory(), max_file_store=_SERVER_BYTES)


@asynccontextmanager
async def open_lab(parallel: int = 1, reports: Path | None = None, *, keep: bool = False) -> AsyncIterator[Lab]:
    """Start `parallel` nats-servers and what else cases need; all of it is gone at the end.

    `reports` is where the directories of runs go that do not pass; with `keep`, of all.

    Raises:
        Misconfigured: a nats-server cannot be found or started.
    """
    servers = [_new_server() for _ in range(parallel)]
    try:
        for server in servers:
            server.start()
        async with open_loop(), trio.open_nursery() as nursery:
            lab = Lab(nursery, servers, reports, keep=keep)
            try:
                yield lab
            finally:
                lab.closing.set()
            nursery.cancel_scope.cancel()
    finally:
        for server in servers:
            # What it holds is thrown away, so it need not put it in order.
            server.kill()
            server.stop()

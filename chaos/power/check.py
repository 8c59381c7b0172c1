"""Power loss, checked: a run is recorded in one process, planted bug and all, and judged in another, without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import trio

from chaos.case import Case
from chaos.lab import Outcome
from chaos.mutants.patch import Patch, patch_to_json
from chaos.power.ground import with_short_log
from chaos.power.judging import RESULT
from chaos.power.result import PowerResult
from chaos.power.session import TAPE
from chaos.scratch import scratch_directory

__all__ = ["Checked", "Told", "check_power", "check_seeds", "judge_power", "record_power"]

#: Of a case's own deadline, for each of its sessions.
_PATIENCE: Final = 4
_JUDGING_S: Final = 900.0
_POLL_S: Final = 0.005
_LOG_LINES: Final = 30

#: Called with (steps done, steps, distinct images).
Told = Callable[[int, int, int], None]


@attrs.frozen
class Checked:
    """What came of one recording. `tape` is where it is kept, if it is; `seconds` includes the recording."""

    case: Case
    result: PowerResult
    tape: Path | None
    seconds: float

    @property
    def outcome(self) -> Outcome:
        """The same as the outcome of a run."""
        return Outcome(self.case, self.result.verdict, None, self.seconds)


async def check_power(
    case: Case,
    *,
    patch: Patch | None = None,
    until: str = "",
    keep: Path | None = None,
    told: Told = lambda *_: None,
) -> Checked:
    """Record the run of `case`, with a planted bug if `patch` is one, and judge every crash image of it.

    It goes on until the guarantee `until` has fallen. The tape is moved to `keep` if a promise was broken. Never raises
    for what goes wrong in it: that is among the reasons of the result.
    """
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="meshforge-power-", dir=scratch_directory()))
    try:
        failure = await record_power(case, home, patch)
        if failure:
            return Checked(case, PowerResult(reasons=[f"nothing was recorded: {failure}"]), None, _since(began))
        result = await _judged(home / TAPE, home, until, told)
        tape = None
        if result.broken and keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
            tape = Path(shutil.move(home / TAPE, keep))
        return Checked(case, result, tape, _since(began))
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def record_power(case: Case, home: Path, patch: Patch | None = None) -> str:
    """Record the run of `case` into the directory `home`, as `session.TAPE`; return why it failed, or nothing."""
    order = {
        "run": case.as_run(case.sent),
        "home": str(home),
        "path": str(Path.cwd()),
        "patch": patch_to_json(with_short_log(patch)),
    }
    return await _run("chaos.power.record", home, order, case.deadline_s * _PATIENCE)


async def check_seeds(
    case_of: Callable[[int], Case] | None, seeds: Sequence[int], found: dict[int, PowerResult]
) -> None:
    """`check_power` for each seed, one after another: judging one keeps a core busy. Without a case there is none."""
    if case_of is None:
        return
    for seed in seeds:
        found[seed] = (await check_power(case_of(seed))).result


async def judge_power(tape: Path, *, told: Told = lambda *_: None) -> PowerResult:
    """Judge every crash image of a recording that was kept; `tape` is an absolute path."""
    home = Path(tempfile.mkdtemp(prefix="meshforge-power-", dir=scratch_directory()))
    try:
        return await _judged(tape, home, "", told)
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def _judged(tape: Path, home: Path, until: str, told: Told) -> PowerResult:
    order = {"tape": str(tape), "scratch": str(home), "path": str(Path.cwd()), "until": until}
    failure = await _run("chaos.power.judging", home, order, _JUDGING_S, told)
    if failure:
        return PowerResult(reasons=[f"the images were not judged: {failure}"])
    return PowerResult.from_json(orjson.loads((home / RESULT).read_bytes()))


async def _run(
    module: str, home: Path, order: Mapping[str, Any], timeout_s: float, told: Told = lambda *_: None
) -> str:
    """Run a module on an order, and pass on its progress; return why it failed, or nothing."""
    path, log = home / "order.json", home / f"{module}.log"
    path.write_bytes(orjson.dumps({**order, "parent": os.getpid()}))
    process = _started(module, path, log)
    with process:
        try:
            with trio.move_on_after(timeout_s) as waited:
                await _listen(process, told)
                while process.poll() is None:
                    await trio.sleep(_POLL_S)
        finally:
            process.kill()
    if process.returncode == 0:
        return ""
    said = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    ended = f"took more than {timeout_s:g} s" if waited.cancelled_caught else f"ended with {process.returncode}"
    return f"{module} {ended}; it said:\n{said or 'nothing'}"


def _started(module: str, order: Path, log: Path) -> subprocess.Popen[bytes]:
    # Not through a thread: the kernel would take that thread's end for the end of the parent.
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )


async def _listen(process: subprocess.Popen[bytes], told: Told) -> None:
    """Pass on every line of progress, until its output ends."""
    assert process.stdout is not None
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as stream:
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                told(*orjson.loads(line))


def _since(began: float) -> float:
    return time.monotonic() - began

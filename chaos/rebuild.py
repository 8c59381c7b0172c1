"""A process that rebuilds states from copies of stores: under another clock, hash seed and time zone than the workers.

Hash seed and zone are in its environment. The clock of `time` is shifted here, before anything that may read it is
imported, by over a year, and by other days for another hash seed. That of `datetime` cannot be without changing its
classes: by itself it tells another time at each call, and another local date in a zone far away.

It is single-threaded, has imported everything but the app, and forks for each order, so that orders leave nothing
behind: 10 ms instead of 500. It speaks JSON lines over its standard streams and dies with its parent. Started by
`chaos.replayer`; `python -m chaos.rebuild` by hand does nothing useful.

    {"id": 1, "store": "/run/image-2/store.db", "app": "chaos.agents:app", "workspaces": ["default/demo"], "path": "/"}
    {"id": 1, "hashes": {"default/demo/counter": "9f86..."}, "differences": []}
    {"id": 2, "error": "..."}

`{"cancel": 1}` ends an order; it is not answered. A planted bug is given as the only argument, the JSON of a patch.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from chaos.forkserver import die_with_parent
from chaos.mutants.patch import install, patch_from_json

__all__ = ["main", "shift_clock"]

_DAY_S: Final = 24 * 3600
#: How far the clock is ahead at least: another day of the week, month and year.
_DAYS_MIN: Final = 400
#: How many replayers see other days than each other.
_DAYS_APART: Final = 997


def main() -> None:
    """Serve orders until the parent is gone."""
    die_with_parent()
    shift_clock(days=_DAYS_MIN + int(os.environ["PYTHONHASHSEED"]) % _DAYS_APART)
    if len(sys.argv) > 1:
        install(patch_from_json(json.loads(sys.argv[1])))
    # What an app prints must not end up among the answers.
    orders, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    _import_all()
    gc.freeze()
    _Server(orders, answers).serve()


def shift_clock(days: int) -> None:
    """Have the functions of `time` that read the wall clock tell another time, in this process and those it forks."""
    by_s = days * _DAY_S
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + by_s
    time.time_ns = lambda: real_time_ns() + by_s * 1_000_000_000
    for name in ("ctime", "gmtime", "localtime"):
        setattr(time, name, _at_shifted_time(getattr(time, name)))
    for name in ("asctime", "strftime"):
        setattr(time, name, _of_shifted_tuple(getattr(time, name), name == "strftime"))


def _at_shifted_time(function: Callable[[float], Any]) -> Callable[..., Any]:
    def told(seconds: float | None = None, /) -> Any:
        return function(time.time() if seconds is None else seconds)

    return told


def _of_shifted_tuple(function: Callable[..., str], formats: bool) -> Callable[..., str]:
    def told(*arguments: Any) -> str:
        if len(arguments) == int(formats):
            return function(*arguments, time.localtime())
        return function(*arguments)

    return told


def _import_all() -> None:
    import chaos.rows  # noqa: F401, PLC0415
    import meshforge_trio.cli.reader  # noqa: PLC0415
    import meshforge_trio.launch  # noqa: PLC0415
    import meshforge_trio.replay  # noqa: F401, PLC0415


class _Server:
    """Forks a child per order, and passes on the line that each of them writes."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        self._rest = b""

    def serve(self) -> None:
        self._selector.register(self._orders, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._orders:
                    got = os.read(self._orders, 65536)
                    if not got:
                        return
                    *lines, self._rest = (self._rest + got).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
                else:
                    self._hear(key.fd)

    def _take(self, order: Mapping[str, Any]) -> None:
        if "cancel" in order:
            for child in self._children.values():
                if child.id == order["cancel"]:
                    child.cancelled = True
                    os.kill(child.pid, signal.SIGKILL)
            return
        told, tell = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _obey(order, tell, parent)
        os.close(tell)
        self._children[told] = _Child(order["id"], pid)
        self._selector.register(told, selectors.EVENT_READ)

    def _hear(self, told: int) -> None:
        child = self._children[told]
        got = os.read(told, 65536)
        child.line += got
        if got:
            return
        self._selector.unregister(told)
        os.close(told)
        del self._children[told]
        _, status = os.waitpid(child.pid, 0)
        if child.cancelled:
            return
        if not child.line:
            died = f"its process ended with {os.waitstatus_to_exitcode(status)} and without an answer"
            child.line = json.dumps({"id": child.id, "error": died}).encode()
        line = child.line + b"\n"
        while line:
            line = line[os.write(self._answers, line) :]


class _Child:
    """A process that works on order `id`, and what it has written so far."""

    def __init__(self, id_: int, pid: int) -> None:
        self.id = id_
        self.pid = pid
        self.line = b""
        self.cancelled = False


def _obey(order: Mapping[str, Any], tell: int, parent: int) -> NoReturn:
    """The life of a child; it does not return."""
    try:
        die_with_parent(parent)
        answer = _rebuilt(order)
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    try:
        line = json.dumps({"id": order["id"], **answer}).encode()
        while line:
            line = line[os.write(tell, line) :]
    finally:
        os._exit(0)


def _rebuilt(order: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an order asks for, from a copy of the store it names."""
    from chaos.rows import copy_store  # noqa: PLC0415

    sys.path.insert(0, order["path"])
    os.chdir(order["path"])
    store = Path(order["store"])
    # Beside the image where it may be: a child that is killed leaves it to whoever removes the run's directory.
    beside = store.parent if os.access(store.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="rebuild-", dir=beside) as home:
        copy_store(store, Path(home))
        return _rebuilt_from(Path(home) / "store.db", order["app"], order["workspaces"])


def _rebuilt_from(store: Path, app_spec: str, workspaces: Sequence[str]) -> Mapping[str, Any]:
    import trio  # noqa: PLC0415

    from meshforge_trio.cli.reader import read_store  # noqa: PLC0415
    from meshforge_trio.codec import ScopeSealer  # noqa: PLC0415
    from meshforge_trio.launch import adapter_of, load_app  # noqa: PLC0415
    from meshforge_trio.replay import replay_scope  # noqa: PLC0415

    hashes: dict[str, str] = {}
    differences: list[str] = []
    app = load_app(app_spec)
    if not _holds_tables(store):
        return {"hashes": hashes, "differences": differences}
    with read_store(store) as opened:
        for scope in opened.scopes:
            if f"{scope.tenant}/{scope.workspace}" not in workspaces:
                continue
            adapter = adapter_of(app, scope.agent)
            try:
                sealer = ScopeSealer.of_scope(app.codecs, scope)
                report = trio.run(replay_scope, opened.rows(scope), adapter, _quietly, sealer)
            except Exception as error:
                # Damage to the rows, or a state that cannot be written down: that is a finding, too.
                differences.append(f"{scope}: {type(error).__name__}: {error}")
                continue
            hashes[str(scope)] = report.state_hash
            if report.first_difference is not None:
                differences.append(str(report.first_difference))
    return {"hashes": hashes, "differences": differences}


def _quietly(events: int) -> None:
    """Nobody waits for this process's progress."""


def _holds_tables(store: Path) -> bool:
    """Whether its first engine came so far: one killed before left no file, or an empty one."""
    import apsw  # noqa: PLC0415

    if not store.exists():
        return False
    connection = apsw.Connection(str(store))
    try:
        return bool(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'outputs'").fetchall())
    finally:
        connection.close()


if __name__ == "__main__":
    main()

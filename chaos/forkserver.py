"""A process that has imported everything once and forks workers from then on: 4 ms instead of 300.

It is single-threaded, speaks JSON lines over its standard streams, and dies with its parent, as the workers die with
it. Started by `chaos.zygote`; `python -m chaos.forkserver` by hand does nothing useful.

A planted bug is given as its only argument, the JSON of a patch, and laid over the source before it is imported.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import sys
import traceback
from typing import Any

from chaos.mutants.patch import assert_applied, install, patch_from_json

__all__ = ["die_with_parent", "main"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the one that started it is gone (Linux).

    `parent` is that one, if it is known: should it be gone already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve orders: `{"spawn": {...}}` forks a worker; each worker's end is told as `{"ended": [pid, status]}`."""
    die_with_parent()
    patch = patch_from_json(json.loads(sys.argv[1])) if len(sys.argv) > 1 else None
    if patch is not None:
        install(patch)
    # Late, so that a planted bug is in place before what it is planted in.
    import chaos.agents  # noqa: PLC0415
    import chaos.worker  # noqa: F401, PLC0415

    if patch is not None:
        assert_applied(patch)
    # What is here now stays for every child: none of them need look at it, and so copy it.
    gc.freeze()
    wake, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told)
    orders = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap()
        if 0 in ready:
            got = os.read(0, 65536)
            if not got:
                return
            *lines, orders = (orders + got).split(b"\n")
            for line in lines:
                _spawn(json.loads(line)["spawn"])


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell({"ended": [pid, os.waitstatus_to_exitcode(status)]})


def _spawn(order: dict[str, Any]) -> None:
    try:
        # Opened here, so that the worker inherits them before anything can happen to it.
        history = os.open(order["history"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except FileNotFoundError:
        # The run was given up meanwhile, and its directory is gone: nobody waits for this worker.
        return
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(history)
        os.close(log)
        _tell({"spawned": [order["ticket"], pid]})
        return
    code = 70
    try:
        _become_worker(log, parent)
        from chaos.worker import live  # noqa: PLC0415

        code = live(order, history)
    except BaseException:
        # Into its log; nobody else would hear of it.
        traceback.print_exc()
    finally:
        os._exit(code)


def _tell(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _become_worker(log: int, parent: int) -> None:
    """Its own process group, dying with the fork server, its output in its log: a pipe could not be finished."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent(parent)
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


if __name__ == "__main__":
    main()

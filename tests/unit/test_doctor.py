"""The doctor's rules that need no broker, and what every rule promises."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from chaos.checkers import CHECKERS
from meshforge_trio.broker.api import stream_config
from meshforge_trio.broker.fitness import unfit_consumer, unfit_stream
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.doctor import local
from meshforge_trio.doctor.local import check_start, examine_machine, examine_settings, examine_store, mount_of
from meshforge_trio.doctor.rules import RULES, Finding, Rule
from meshforge_trio.doctor.streams import _account, _stream, _version, overlap
from meshforge_trio.doctor.syncing import Syncing, examine_syncing, of_config_file, of_monitor
from meshforge_trio.engine import stream_specs
from meshforge_trio.errors import Misconfigured
from meshforge_trio.policy import RetryPolicy

ROOT = Path(__file__).parents[2]


def bad(findings: Iterator[Finding] | Sequence[Finding]) -> list[tuple[str, str]]:
    """What is not ok: rule and severity."""
    return [(finding.rule.id, finding.severity) for finding in findings if finding.severity != "ok"]


# -- every rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_names_its_guarantees_and_a_scenario_that_exists(rule: Rule) -> None:
    assert {part.strip() for part in rule.guards.split(",")} <= {checker.id for checker in CHECKERS}
    assert rule.why.endswith(".")
    assert (ROOT / rule.scenario).is_file()
    assert rule.scenario.startswith("scenarios/")


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)


# -- settings ----------------------------------------------------------------------------------------------------


def of_settings(policy: RetryPolicy | None = None, lease_ttl_s: float = 5.0, **engine: Any) -> list[tuple[str, str]]:
    settings = Settings(engine=EngineSettings(**engine), lease_ttl_s=lease_ttl_s)
    return bad(examine_settings(settings, {"order": policy or RetryPolicy(), "other": RetryPolicy()}))


def test_the_defaults_are_fine() -> None:
    assert of_settings() == []


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"ack_wait_s": 29.0}, [("ack-wait", "warn")]),
        ({"policy": RetryPolicy(handler_limit_s=31.0)}, [("ack-wait", "warn")]),
        ({"duplicate_window_s": 9.0}, [("duplicate-window", "warn")]),
        ({"publish_timeout_s": 61.0}, [("duplicate-window", "warn")]),
        ({"lease_ttl_s": 61.0}, [("duplicate-window", "warn")]),
        ({"max_ack_pending": 511}, [("ack-pending", "warn")]),
        ({"max_ack_pending": 3, "batch": 1}, [("ack-pending", "refuse")]),
        ({"lease_ttl_s": 2.0}, [("lease", "warn")]),
        ({"policy": RetryPolicy(limit=2)}, [("retry-limit", "warn")]),
        ({"policy": RetryPolicy(limit=0)}, []),
    ],
)
def test_each_doubtful_setting_is_found_alone(given: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert of_settings(**given) == found


def test_findings_name_the_agent_and_say_what_to_do() -> None:
    (warned,) = [
        finding
        for finding in examine_settings(Settings(), {"order": RetryPolicy(limit=2), "other": RetryPolicy()})
        if finding.severity == "warn"
    ]
    assert warned.found == "the retry limit is 2 for order"
    assert warned.do


# -- the store's place -------------------------------------------------------------------------------------------

MOUNTS = r"""
/dev/vda / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
server:/export /srv/shared nfs4 rw 0 0
/dev/vdb /srv/shared/local xfs rw 0 0
me@host:/ /srv/with\040space fuse.sshfs rw 0 0
//nas/x /srv/over cifs rw 0 0
/dev/vdc /srv/over ext4 rw 0 0
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/x.db", "ext4"),
        ("/run/x.db", "tmpfs"),
        ("/srv/shared/a/b/x.db", "nfs4"),
        ("/srv/shared/local/x.db", "xfs"),
        ("/srv/sharedness/x.db", "ext4"),
        ("/srv/with space/x.db", "fuse.sshfs"),
        ("/srv/over/x.db", "ext4"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_existing", lambda given: given.parent)
    found = mount_of(Path(path), MOUNTS)
    assert found is not None
    assert found.kind == kind


def test_this_machine_tells_where_a_store_lies(tmp_path: Path) -> None:
    found = mount_of(tmp_path / "not" / "yet" / "x.db")
    assert found is not None
    assert (tmp_path / "not").parent.is_relative_to(found.at)


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.s3fs", "ceph", "glusterfs", "lustre"]
)
def test_a_store_on_a_network_file_system_is_refused_at_every_start(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(f"/dev/vda / ext4 rw 0 0\nx {tmp_path} {kind} rw 0 0\n")
    assert ("store-file-system", "refuse") in bad(examine_store(tmp_path / "x.db", durable=False))
    with pytest.raises(Misconfigured, match=f"the store lies on {kind}, .*rule store-file-system"):
        check_start(Settings(store=tmp_path / "x.db"))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "zfs", "apfs", "fuse.lxcfs", "tmpfs"])
def test_a_local_file_system_is_not_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(f"x / {kind} rw 0 0\n")
    check_start(Settings(store=tmp_path / "x.db"))


def test_too_little_room_to_wait_in_is_refused_at_every_start(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"max_ack_pending is 3, .*rule ack-pending"):
        check_start(Settings(store=tmp_path / "x.db", engine=EngineSettings(max_ack_pending=3)))


def test_a_store_in_memory_is_a_warning_unless_it_must_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text("tmpfs / tmpfs rw 0 0\n")
    tmp_path.chmod(0o700)
    assert bad(examine_store(tmp_path / "x.db", durable=False)) == [("store-memory", "warn")]
    assert bad(examine_store(tmp_path / "x.db", durable=True)) == [("store-memory", "refuse")]


def test_a_system_that_does_not_tell_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MOUNTS", tmp_path / "none")
    tmp_path.chmod(0o700)
    assert bad(examine_store(tmp_path / "x.db", durable=False)) == [("store-file-system", "unknown")]
    check_start(Settings(store=tmp_path / "x.db"))


@pytest.mark.parametrize(
    ("directory", "file", "warned"),
    [(0o700, 0o600, False), (0o750, 0o600, True), (0o700, 0o644, True), (0o755, 0o640, True)],
)
def test_modes_that_let_others_in(directory: int, file: int, warned: bool, tmp_path: Path) -> None:
    store = tmp_path / "x.db"
    store.touch()
    store.chmod(file)
    tmp_path.chmod(directory)
    found = [finding for finding in examine_store(store, durable=False) if finding.rule.id == "store-mode"]
    assert bad(found) == ([("store-mode", "warn")] if warned else [])
    assert ("chmod 600" in found[0].do) == (file != 0o600)
    assert ("chmod 700" in found[0].do) == (directory != 0o700)


def test_little_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    for free, warned in ((900 << 20, True), (20 << 30, False)):
        usage = type("Usage", (), {"total": 100 << 30, "free": free, "used": 0})
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        found = [rule for rule, _ in bad(examine_store(tmp_path / "x.db", durable=False))]
        assert ("disk-free" in found) == warned


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, found in ((255, [("open-files", "warn")]), (256, []), (resource.RLIM_INFINITY, [])):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, soft))
        assert bad(examine_machine()) == found


# -- the server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "durable", "severity"),
    [
        ("2.13.9", False, "refuse"),
        ("2.14.0", False, "warn"),
        ("2.14.0", True, "refuse"),
        ("2.15.0", False, "warn"),
        ("2.15.1", True, "ok"),
        ("2.16.0-beta.1", True, "ok"),
        ("3.0.0", False, "ok"),
    ],
)
def test_versions_of_the_server(version: str, durable: bool, severity: str) -> None:
    assert _version(version, durable=durable).severity == severity


@pytest.mark.parametrize(
    ("account", "found"),
    [
        ({"storage": 5, "limits": {"max_ack_pending": -1, "max_storage": -1}}, []),
        ({"storage": 91, "limits": {"max_ack_pending": -1, "max_storage": 100}}, [("account", "warn")]),
        ({"storage": 5, "limits": {"max_ack_pending": 1000, "max_storage": 100}}, [("account", "refuse")]),
        ({}, []),
    ],
)
def test_limits_of_the_account(account: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert bad(_account(account, Settings())) == found


@pytest.mark.parametrize(
    ("copies", "clustered", "severity"),
    [(1, False, "ok"), (1, True, "warn"), (2, True, "warn"), (3, True, "ok"), (4, False, "warn"), (5, True, "ok")],
)
def test_copies_of_a_stream(copies: int, clustered: bool, severity: str) -> None:
    spec = stream_specs(EngineSettings(replicas=copies))[0]
    found = list(_stream(spec, stream_config(spec), clustered=clustered))
    assert [(each.rule.id, each.severity) for each in found if each.rule.id != "stream-settings"] == [
        ("stream-replicas", severity)
    ]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("cmd.t.w.a.>", "cmd.t.w.a.>", True),
        ("cmd.>", "cmd.t.w.a.>", True),
        (">", "cmd.t.w.a.>", True),
        ("cmd.*.w.a.add", "cmd.t.w.a.>", True),
        ("cmd.t.w.b.>", "cmd.t.w.a.>", False),
        ("cmd.*.w.b.*", "cmd.t.*.a.*", False),
        ("cmd.t.w", "cmd.t.w.a.>", False),
        ("cmd.t.w.a", "cmd.t.w.a.b", False),
        ("evt.>", "cmd.t.w.a.>", False),
    ],
)
def test_patterns_that_overlap(one: str, other: str, both: bool) -> None:
    assert overlap(one, other) is both
    assert overlap(other, one) is both


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("jetstream { store_dir: x }", "2m"),
        ("jetstream {\n  sync_interval: always\n}", "always"),
        ('jetstream {\n  sync_interval: "always"\n}', "always"),
        ("jetstream { sync: always }", "always"),
        ("jetstream { sync_interval = 100ms }", "100ms"),
        ("jetstream {\n  # sync_interval: always\n}", "2m"),
        ("jetstream {\n  // sync_interval: always\n  sync_interval 10s\n}", "10s"),
        ("include ./jetstream.conf", ""),
        ("include ./more.conf\njetstream { sync_interval: always }", "always"),
        ("cluster { async_interval: always }", "2m"),
    ],
)
def test_what_a_configuration_of_the_server_says(text: str, interval: str, tmp_path: Path) -> None:
    (tmp_path / "server.conf").write_text(text)
    assert of_config_file(tmp_path / "server.conf").interval == interval


def test_a_configuration_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be read"):
        of_config_file(tmp_path / "none.conf")


@pytest.mark.parametrize(
    ("told", "lazy", "durable"),
    [
        (None, "unknown", "warn"),
        (Syncing("", "x"), "unknown", "warn"),
        (Syncing("2m", "x"), "warn", "refuse"),
        (Syncing("always", "x"), "ok", "ok"),
    ],
)
def test_a_lazy_server_is_refused_where_nothing_may_be_lost(told: Syncing | None, lazy: str, durable: str) -> None:
    assert examine_syncing(told, durable=False).severity == lazy
    assert examine_syncing(told, durable=True).severity == durable


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """Something on a port of its own that answers everything with `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"jetstream": 3}', b"\xff\xfe"])
def test_a_port_that_is_no_monitor_is_told(body: bytes) -> None:
    with answering(body) as url, pytest.raises(Misconfigured, match="does not answer as one of nats-server"):
        of_monitor(url)


def test_a_monitor_without_the_setting_tells_nothing() -> None:
    with answering(json.dumps({"jetstream": {"config": {}}}).encode()) as url:
        assert of_monitor(url).interval == ""


@pytest.mark.parametrize("url", ["ftp://x", "file:///etc/passwd", "127.0.0.1:8222"])
def test_an_address_that_is_no_monitor_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="is no http:// address"):
        of_monitor(url)


# -- what nobody asks for ----------------------------------------------------------------------------------------


def test_what_servers_say_by_themselves_is_fit() -> None:
    assert not list(unfit_stream({"max_msgs": -1, "max_msgs_per_subject": -1, "sealed": False, "no_ack": False}))
    assert not list(unfit_consumer({"max_waiting": 512, "num_replicas": 0, "max_batch": 0}))


@pytest.mark.parametrize(
    "config",
    [
        {"max_msgs": 10},
        {"max_msgs_per_subject": 1},
        {"no_ack": True},
        {"sealed": True},
        {"mirror": {"name": "x"}},
        {"sources": [{"name": "x"}]},
        {"subject_transform": {"src": "a", "dest": "b"}},
        {"allow_rollup_hdrs": True},
        {"persist_mode": "async"},
    ],
)
def test_each_unfit_setting_of_a_stream(config: dict[str, Any]) -> None:
    assert [text.split(" ")[0] for text in unfit_stream(config)] == list(config)


@pytest.mark.parametrize(
    "config",
    [
        {"headers_only": True},
        {"deliver_subject": "x"},
        {"priority_groups": ["g"]},
        {"max_batch": 5},
        {"max_expires": 5},
        {"max_bytes": 5},
        {"backoff": [1, 2]},
    ],
)
def test_each_unfit_setting_of_a_consumer(config: dict[str, Any]) -> None:
    assert [text.split(" ")[0] for text in unfit_consumer(config)] == list(config)

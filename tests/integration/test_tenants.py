"""One process, two tenants in two accounts with a store each: both are served, and what breaks one stops only it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshforge_trio.nats_config import seed_file, tenants_file
from meshforge_trio.policy import ExitCode

from .cli_world import Running, eventually
from .sites_world import TENANTS, Sites, sites, without

#: What the log says when a tenant is given up.
GIVEN_UP = "tenants are no longer served"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Sites]:
    with sites(tmp_path) as made:
        yield made


def given_up(running: Running, tenant: str, reason: str, code: int) -> None:
    """Wait until a tenant, and no other, is given up for that reason."""
    (line,) = running.said(GIVEN_UP)
    assert (line["tenants"], line["level"], line["exit_code"]) == (tenant, "critical", code)
    assert reason in line["reason"]


def zeta_is_served_and_health_names_acme(two: Sites, reason: str) -> None:
    """What every kind of trouble of acme comes to."""
    with two.client("zeta") as zeta:
        assert zeta.call("order", "create", {"n": 1}, entity_id="later").name == "created"
    said = two.becomes("/readyz", 503, reason).splitlines()
    assert said
    assert all(line.startswith("acme: ") for line in said), said
    status, _ = two.health("/livez")
    assert status == 200, "the process itself is well, and must not be restarted for one tenant by whoever watches it"
    assert (two.metrics("meshforge_stopped", "acme"), two.metrics("meshforge_stopped", "zeta")) == (1, 0)
    assert (two.metrics("meshforge_serving", "acme"), two.metrics("meshforge_serving", "zeta")) == (0, 2)
    status, page = two.health("/healthz")
    assert status == 503
    assert '"tenants":["acme"],"status":"failing"' in page
    assert '"tenants":["zeta"],"status":"ok"' in page
    outside = two.shop.does("health")
    assert outside.code == ExitCode.FAILED
    assert "acme: failing" in outside.out
    assert "zeta: ok" in outside.out


# -- both are served ---------------------------------------------------------------------------------------------


def test_each_tenant_is_answered_from_its_own_account_and_store(two: Sites) -> None:
    with two.served() as running, two.clients() as clients:
        for tenant, client in clients.items():
            answer = client.call("order", "create", {"of": tenant}, entity_id="o-1", idempotency_key="k-1", id="c-1")
            assert (answer.tenant, answer.payload["of"]) == (tenant, tenant)
        for tenant in TENANTS:
            # As the operator sees it, who is the runtime's user here.
            args = ("order", "get", "--entity", "o-1", "--workspace", f"{tenant}/shop")
            assert two.shop.answers("call", *args)["payload"]["of"] == tenant
            tail = two.shop.does("tail", "--from-start", "--count", "1", "--workspace", f"{tenant}/shop", "--json")
            assert tail.document["payload"]["of"] == tenant
        assert two.health("/readyz") == (200, "ready\n")
        assert two.shop.does("health").code == ExitCode.OK
        assert two.drained(running) == ExitCode.OK
    # Equal ids, keys and entities have not met, anywhere.
    for tenant in TENANTS:
        assert two.told(tenant) == [(f"evt.{tenant}.shop.order.created", "k-1")]
        assert two.tenants_in(tenant) == {tenant}
        assert two.keys(tenant) == {"k-1": 1}
    assert not two.shop.store.exists()


def test_a_signal_drains_both(two: Sites) -> None:
    with two.served() as running, two.clients() as clients:
        for client in clients.values():
            for n in range(20):
                client.send("order", "create", {"n": n}, entity_id=f"o-{n}", idempotency_key=f"k-{n}")
        assert two.drained(running) == ExitCode.OK
        assert running.said("drained")
    report = two.shop.does("health", "--json").document
    for site in report["sites"]:
        assert all((scope["holder"], scope["outbox"]) == (None, 0) for scope in site["scopes"]), site
    with two.served():
        for tenant in TENANTS:
            two.decides(tenant, {f"k-{n}": 1 for n in range(20)})


def test_killed_and_started_again_each_has_every_effect_once(two: Sites) -> None:
    """The same ids, keys and entities in both, sent before and after the kill."""

    def send(most: int) -> None:
        for tenant, client in clients.items():
            for n in range(most):
                client.send(
                    "order",
                    "create" if n < 7 else "update",
                    {"of": tenant, "n": n},
                    id=f"c-{n}",
                    idempotency_key=f"k-{n}",
                    entity_id=f"o-{n % 7}",
                )

    with two.served() as running, two.clients() as clients:
        send(30)
        eventually(lambda: all(two.metrics("meshforge_commands_total", t) for t in TENANTS), "some decided in both")
        os.kill(running.process.pid, signal.SIGKILL)
        running.ended()
        send(40)
    with two.served() as running, two.clients() as clients:
        send(45)
        for tenant in TENANTS:
            two.decides(tenant, {f"k-{n}": 1 for n in range(45)})
        assert two.drained(running) == ExitCode.OK
    for tenant in TENANTS:
        assert two.keys(tenant) == {f"k-{n}": 1 for n in range(45)}
        events = two.shop.does("events", "--workspace", f"{tenant}/shop", "--json").documents
        assert {event["envelope"]["payload"]["of"] for event in events} == {tenant}
    replayed = two.shop.does("replay", "--app", "shop:app", "--json")
    assert replayed.code == ExitCode.OK
    assert {one["scope"] for one in replayed.documents} == {
        f"{t}/shop/{a}" for t in TENANTS for a in ("inventory", "order")
    }


# -- one is in trouble -------------------------------------------------------------------------------------------


def test_a_store_that_is_damaged_at_the_start_stops_its_tenant_alone(two: Sites) -> None:
    two.store("acme").write_bytes(b"SQLite format 3\0" + b"\xff" * 8_192)
    with two.served(["zeta"]) as running:
        given_up(running, "acme", "acme.db", ExitCode.STORE_BROKEN)
        zeta_is_served_and_health_names_acme(two, "acme.db")
        checked = two.shop.does("verify", "--json")
        assert checked.code == ExitCode.STORE_BROKEN
        assert [(one["path"], one["whole"]) for one in checked.documents if one["whole"]] == [("zeta.db", True)]
        assert two.drained(running) == ExitCode.STORE_BROKEN


def test_a_store_whose_directory_is_a_file_stops_its_tenant_alone(two: Sites) -> None:
    (two.home / "taken").write_text("")
    told = tenants_file(two.conf).read_text().replace('"acme.db"', '"taken/acme.db"')
    two.settle(sections=told)
    with two.served(["zeta"]) as running:
        (line,) = running.said(GIVEN_UP)
        assert line["tenants"] == "acme"
        zeta_is_served_and_health_names_acme(two, "taken/acme.db")


def test_a_store_that_somebody_else_has_locked_keeps_its_tenant_waiting_alone(two: Sites) -> None:
    import apsw

    with two.served() as running:
        assert two.drained(running) == ExitCode.OK
    other = apsw.Connection(str(two.store("acme")))
    other.execute("BEGIN EXCLUSIVE")
    with two.served(["zeta"]) as running:
        (line,) = running.said("the store cannot be opened yet")[:1]
        assert line["tenants"] == "acme"
        said = two.becomes("/readyz", 503, "acme: the store is not open yet")
        assert "zeta" not in said
        other.close()
        two.serving(running, TENANTS)
        two.becomes("/readyz", 200, "ready")
        assert two.drained(running) == ExitCode.OK


@pytest.mark.parametrize(("what", "file"), [("sync", "wal"), ("write", "wal")])
def test_an_io_error_stops_its_tenant_alone_and_is_not_tried_again(two: Sites, what: str, file: str) -> None:
    with two.served() as running, two.clients() as clients:
        for client in clients.values():
            client.call("order", "create", {}, entity_id="o-1", idempotency_key="k-0")
        clients["acme"].send("order", "fail", {"what": what, "file": file}, entity_id="o-1", idempotency_key="k-1")
        given_up(running, "acme", "acme.db", ExitCode.STORE_BROKEN)
        clients["acme"].send("order", "update", {}, entity_id="o-1", idempotency_key="k-2")
        # Not even once the disk is well again: what it has kept is for the next process to judge.
        assert clients["zeta"].call("order", "heal", entity_id="o-1").name == "updated"
        zeta_is_served_and_health_names_acme(two, "no longer served until the process is restarted")
        assert len(running.said(GIVEN_UP)) == 1
        assert "k-2" not in two.keys("acme")
        assert two.drained(running) == ExitCode.STORE_BROKEN
    assert running.said("the runtime ended")[0]["exit_code"] == ExitCode.STORE_BROKEN
    # The disk was that process's; the next one decides what was left, once.
    (two.home / "shop.py").write_text((two.home / "shop.py").read_text().replace("failing.fail(", "("))
    with two.served():
        two.decides("acme", {"k-0": 1, "k-1": 1, "k-2": 1})
    assert two.shop.does("verify", "--json").code == ExitCode.OK


def test_a_store_that_is_deleted_under_the_process_stops_its_tenant_alone(two: Sites) -> None:
    with two.served() as running, two.client("acme") as acme:
        acme.call("order", "create", {}, entity_id="o-1", idempotency_key="k-0")
        two.store("acme").rename(two.home / "kept.db")
        given_up(running, "acme", "was deleted or moved under this process", ExitCode.STORE_BROKEN)
        zeta_is_served_and_health_names_acme(two, "was deleted or moved")
        acme.send("order", "update", {}, entity_id="o-1", idempotency_key="k-1")
        (two.home / "kept.db").rename(two.store("acme"))
        assert two.drained(running) == ExitCode.STORE_BROKEN
    with two.served():
        two.decides("acme", {"k-0": 1, "k-1": 1})


def test_a_full_disk_keeps_its_tenant_waiting_alone(two: Sites) -> None:
    with two.served() as running, two.clients() as clients:
        for client in clients.values():
            client.call("order", "create", {}, entity_id="o-1", idempotency_key="k-0")
        clients["acme"].send("order", "fill", entity_id="o-1", idempotency_key="k-1")
        running.said("no space left for the store; nothing is decided until there is")
        for n in range(20):
            assert clients["zeta"].call("order", "update", {"n": n}, entity_id="o-1").name == "updated"
        said = two.becomes("/readyz", 503, "acme: the store cannot be written").splitlines()
        assert all(line.startswith("acme: ") for line in said), said
        assert two.metrics("meshforge_stopped", "acme") == 0, "there may be space again: it is waited for"
        os.kill(running.process.pid, signal.SIGKILL)
        running.ended()
    (two.home / "shop.py").write_text((two.home / "shop.py").read_text().replace("full.fill(3600)", "ctx"))
    with two.served():
        two.decides("acme", {"k-0": 1, "k-1": 1})


@pytest.mark.parametrize("wrong", ["another's seed", "no seed"])
def test_credentials_that_are_refused_stop_their_tenant_alone(two: Sites, wrong: str) -> None:
    seed = seed_file(two.conf, "acme", "runtime")
    good = seed.read_text()
    if wrong == "no seed":
        seed.unlink()
    else:
        stranger = two.shop.does("nats-config", "other", "--tenant", "acme")
        assert stranger.code == 0
        seed.write_text(seed_file(two.home / "other", "acme", "runtime").read_text())
    reason = "No such file" if wrong == "no seed" else "refuses these credentials"
    with two.served(["zeta"]) as running:
        given_up(running, "acme", reason, ExitCode.MISCONFIGURED)
        zeta_is_served_and_health_names_acme(two, reason)
        assert two.drained(running) == ExitCode.MISCONFIGURED
    seed.write_text(good)
    seed.chmod(0o600)
    with two.served() as running:
        assert two.drained(running) == ExitCode.OK


def test_on_a_shared_store_an_account_that_refuses_stops_its_tenant_alone(two: Sites) -> None:
    """What they have in common is the store, and nothing is wrong with it."""
    told = tenants_file(two.conf).read_text().replace('"zeta.db"', '"acme.db"')
    two.settle(sections=without(told, "acme", "nkey_seed_file"))
    with two.served(["zeta"]) as running:
        given_up(running, "acme", "refuses these credentials", ExitCode.MISCONFIGURED)
        zeta_is_served_and_health_names_acme(two, "refuses these credentials")
        assert two.drained(running) == ExitCode.MISCONFIGURED


def test_when_none_is_left_the_process_ends_with_the_severest_code(two: Sites) -> None:
    two.store("zeta").write_bytes(b"SQLite format 3\0" + b"\xff" * 8_192)
    seed_file(two.conf, "acme", "runtime").unlink()
    with two.started() as running:
        assert running.ended() == ExitCode.STORE_BROKEN
        assert {line["tenants"] for line in running.said(GIVEN_UP, 2)} == {"acme", "zeta"}
        (line,) = running.said("the runtime ended")
        assert "zeta.db" in line["reason"]


def test_workers_go_on_for_the_tenants_that_are_left(two: Sites) -> None:
    two.store("acme").write_bytes(b"SQLite format 3\0" + b"\xff" * 8_192)
    with two.served(["zeta"], "--workers", "2") as running:
        assert {line["worker"] for line in running.said(GIVEN_UP, 2)} == {0, 1}
        with two.client("zeta") as zeta:
            assert zeta.call("order", "create", {}, entity_id="o-1").name == "created"
        assert two.drained(running) == ExitCode.STORE_BROKEN


# -- one is noisy ------------------------------------------------------------------------------------------------


def test_poison_of_one_tenant_is_set_aside_there_and_delays_no_other(two: Sites) -> None:
    with two.served(), two.clients() as clients:
        for n in range(40):
            clients["acme"].send("order", "poison", entity_id=f"o-{n}", idempotency_key=f"k-{n}")
            # It fails for now, and holds its entity for as long as it is tried.
            clients["acme"].send("order", "stumble", entity_id="held", idempotency_key=f"s-{n}")
        for n in range(40):
            answer = clients["zeta"].call("order", "create", {}, entity_id=f"o-{n}", idempotency_key=f"k-{n}")
            assert answer.name == "created"
        eventually(lambda: two.metrics("meshforge_dead", "acme") == 40, "every poison set aside")
        assert two.metrics("meshforge_parked", "acme") == 1, "the first that stumbled is still waiting for its next try"
        assert two.metrics("meshforge_commands_total", "zeta") == 40
        assert two.metrics("meshforge_dead", "zeta") == two.metrics("meshforge_parked", "zeta") == 0
        letters = two.shop.does("dlq", "list", "--json").documents
        assert len(letters) == 40
        assert {letter["scope"] for letter in letters} == {"acme/shop/order"}
    assert two.shop.does("dlq", "list", "--workspace", "zeta/shop", "--json").documents == []


def test_a_handler_that_never_returns_ends_the_process_of_all(two: Sites) -> None:
    """The limit of sharing a process: what blocks its event loop blocks everybody."""
    two.settle("engine.retry.handler_limit_s = 0.5")
    with two.served() as running, two.client("acme") as acme:
        acme.send("order", "spin", entity_id="o-1", idempotency_key="k-1")
        assert running.ended() == ExitCode.FAILED
        assert "Timeout" in running.log.read_text()

"""Commands where tenants have stores and accounts of their own: each acts on the right one, or walks all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshforge_trio.nats_config import seed_file, tenants_file
from meshforge_trio.policy import ExitCode
from meshforge_trio.signing import Signer

from .sites_world import TENANTS, Sites, sites, without

SCOPES = [f"{tenant}/shop/{agent}" for tenant in TENANTS for agent in ("inventory", "order")]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Sites]:
    with sites(tmp_path) as made:
        yield made


def lived(two: Sites) -> None:
    """Each tenant has one order of the same name, and one dead letter under the same key."""
    with two.served() as running, two.clients() as clients:
        for tenant, client in clients.items():
            client.call("order", "create", {"of": tenant}, entity_id="o-1", idempotency_key="k-1")
            client.send("order", "poison", entity_id="o-2", idempotency_key="dead")
        for tenant in TENANTS:
            two.becomes("/metrics", 200, f'meshforge_dead{{agent="order",tenant="{tenant}",workspace="shop"}} 1.0')
        assert two.drained(running) == ExitCode.OK


def test_stores_are_read_by_tenant_or_all_at_once(two: Sites) -> None:
    lived(two)
    does = two.shop.does
    assert {event["scope"] for event in does("events", "--json").documents} == {f"{t}/shop/order" for t in TENANTS}
    zeta = ("--workspace", "zeta/shop")
    assert does("state", "order", "o-1", "--app", "shop:app", *zeta, "--json").document["state"] == {"of": "zeta"}
    assert [each["scope"] for each in does("hash", "--app", "shop:app", "--json").documents] == SCOPES
    one = does("replay", "--app", "shop:app", "--scope", "zeta/shop/order", "--json")
    assert (one.code, one.document["scope"], one.document["events"]) == (ExitCode.OK, "zeta/shop/order", 1)
    both = does("dlq", "show", "dead")
    assert (both.code, "acme/shop/order and zeta/shop/order both have" in both.err) == (ExitCode.USAGE, True)
    assert does("dlq", "show", "dead", *zeta, "--json").document["scope"] == "zeta/shop/order"
    assert does("dlq", "export", "letters.jsonl").code == ExitCode.OK
    written = [json.loads(line) for line in (two.home / "letters.jsonl").read_text().splitlines()]
    assert [letter["scope"] for letter in written] == ["acme/shop/order", "zeta/shop/order"]
    # A flag names one store for every tenant.
    alone = does("events", "--store", "acme.db", "--json")
    assert {event["scope"] for event in alone.documents} == {"acme/shop/order"}


def test_a_copy_is_made_and_put_back_by_tenant(two: Sites) -> None:
    lived(two)
    does = two.shop.does
    for command in (("backup", "copy.db"), ("restore", "copy.db")):
        asked = does(*command)
        assert (asked.code, "--tenant, one of acme, zeta" in asked.err) == (ExitCode.USAGE, True), asked
    nobody = does("backup", "copy.db", "--tenant", "nobody")
    assert (nobody.code, "no workspace is of tenant 'nobody'" in nobody.err) == (ExitCode.USAGE, True)
    made = does("backup", "copy.db", "--tenant", "zeta", "--json").document
    assert {scope["scope"].split("/")[0] for scope in made["scopes"]} == {"zeta"}
    checked = does("verify", "--json")
    assert (checked.code, [one["path"] for one in checked.documents]) == (ExitCode.OK, ["acme.db", "zeta.db"])
    assert does("verify", "--tenant", "zeta", "--json").document["path"] == "zeta.db"
    two.store("zeta").unlink()
    assert does("restore", "copy.db", "--tenant", "zeta").code == ExitCode.OK
    assert two.tenants_in("zeta") == {"zeta"}
    assert two.tenants_in("acme") == {"acme"}


def test_stores_and_streams_are_compared_by_site(two: Sites) -> None:
    lived(two)
    does = two.shop.does
    compared = does("reconcile", "--dry-run", "--json")
    assert compared.code == ExitCode.OK, compared
    assert [(one["scope"], one["need"]) for one in compared.documents] == [(scope, "nothing") for scope in SCOPES]
    unclear = does("reconcile", "--accept-store")
    assert (unclear.code, "one site at a time, by --workspace; there are acme; zeta" in unclear.err) == (2, True)
    only = does("reconcile", "--accept-store", "--workspace", "zeta/shop", "--json")
    assert (only.code, [one["scope"] for one in only.documents]) == (ExitCode.OK, SCOPES[2:])
    examined = does("doctor", "--app", "shop:app", "--json")
    assert examined.code == ExitCode.OK, examined
    belonging = [each["found"] for each in examined.documents if each["rule"]["id"] == "store-streams"]
    assert [found.split(": ")[:2] for found in belonging] == [[scope.split("/")[0], scope] for scope in SCOPES]
    # One account that does not let us in hides nothing of the other.
    settings = (two.home / "meshforge.toml").read_text()
    (two.home / "meshforge.toml").write_text(without(settings, "acme", "nkey_seed_file"))
    half = does("doctor", "--app", "shop:app")
    assert half.code == ExitCode.MISCONFIGURED
    assert "acme: tls" not in half.out
    assert "refuses these credentials" in half.out
    assert "zeta: zeta/shop/order: the streams confirm the newest mark" in half.out


def test_dead_letters_and_stranded_commands_are_found_in_their_account(two: Sites) -> None:
    does = two.shop.does
    lived(two)
    with two.served(), two.clients() as clients:
        redriven = does("dlq", "redrive", "--all", "--reason", "tried", "--yes", "--json")
        assert {one["scope"]: one["outcome"] for one in redriven.documents} == {
            f"{tenant}/shop/order": "done" for tenant in TENANTS
        }
        for tenant in TENANTS:
            # It is poison still: each died again, in the next generation, where it had died before.
            two.becomes("/metrics", 200, f'meshforge_dead{{agent="order",tenant="{tenant}",workspace="shop"}} 1.0')
            clients[tenant].send("nobody", "look", idempotency_key=f"lost-{tenant}")
        swept = does("dlq", "sweep", "--older-than", "0s", "--json", "--export", "lost.jsonl", "--delete", "--yes")
        assert [one["subject"] for one in swept.documents] == [f"cmd.{tenant}.shop.nobody.look" for tenant in TENANTS]
        assert "2 deleted" in swept.err
        written = [json.loads(line) for line in (two.home / "lost.jsonl").read_text().splitlines()]
        assert [json.loads(one["payload"])["idempotency_key"] for one in written] == ["lost-acme", "lost-zeta"]
        assert does("dlq", "sweep", "--older-than", "0s").code == ExitCode.OK


def test_each_tenant_has_its_key_sign_what_is_sent(two: Sites) -> None:
    """Also what a redrive sends. A key speaks for nobody of another tenant."""

    def public(tenant: str) -> str:
        return Signer.from_file(seed_file(two.conf, tenant, "runtime")).public_key

    entries = json.dumps([f"{tenant} *:* {public(tenant)}" for tenant in TENANTS])
    told = tenants_file(two.conf).read_text()
    signing = re.sub(r'nkey_seed_file = ("[^"]*")', r"nkey_seed_file = \1\nsigning_seed_file = \1", told)
    two.settle(f"signing_keys = {entries}", signing)
    does = two.shop.does
    zeta = ("--workspace", "zeta/shop")
    with two.served():
        assert does("call", "order", "create", "{}", "--entity", "o-1", *zeta).code == ExitCode.OK
        assert does("call", "order", "poison", "--key", "dead", "--entity", "o-2", *zeta).code == ExitCode.FAILED
        redriven = does("dlq", "redrive", "dead", "--reason", "tried", "--yes", "--json")
        assert [one["outcome"] for one in redriven.documents] == ["done"], redriven
        wrong = {"MESHFORGE_TENANTS__ZETA__SIGNING_SEED_FILE": str(seed_file(two.conf, "acme", "runtime"))}
        refused = does("call", "order", "update", "{}", "--entity", "o-1", *zeta, env=wrong)
        assert (refused.code, "wrong_key" in refused.err) == (ExitCode.FAILED, True), refused


def test_one_store_for_two_accounts_is_told_apart_by_tenant(two: Sites) -> None:
    """Scopes are disjoint, so the marks of each belong to the streams of its own account."""
    settings = (two.home / "meshforge.toml").read_text()
    (two.home / "meshforge.toml").write_text(settings.replace('"zeta.db"', '"acme.db"'))
    lived(two)
    assert two.tenants_in("acme") == set(TENANTS)
    assert not two.store("zeta").exists()
    does = two.shop.does
    compared = does("reconcile", "--dry-run", "--json")
    assert [(one["scope"], one["need"]) for one in compared.documents] == [(scope, "nothing") for scope in SCOPES]
    report = does("health", "--json").document
    shown = [(site["tenants"], [scope["scope"] for scope in site["scopes"]]) for site in report["sites"]]
    assert shown == [(["acme"], SCOPES[:2]), (["zeta"], SCOPES[2:])]
    assert does("backup", "copy.db").code == ExitCode.OK
    with two.served() as running:
        two.store("acme").rename(two.home / "kept.db")
        assert running.ended() == ExitCode.STORE_BROKEN
        assert {line["tenants"] for line in running.said("tenants are no longer served", 2)} == set(TENANTS)

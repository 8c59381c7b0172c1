"""The server configuration with an account per tenant: what is written, kept, replaced and refused."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from meshforge_trio.cli.accounts import nats_config
from meshforge_trio.config import load_settings
from meshforge_trio.errors import Misconfigured
from meshforge_trio.launch import connect_options
from meshforge_trio.nats_config import (
    ROLES,
    Node,
    ServerPlan,
    Tls,
    config_file,
    inbox_prefix,
    parse_node,
    seed_file,
    signing_entries,
    tenants_file,
    write,
)
from meshforge_trio.server import find_binary
from meshforge_trio.signing import Signer, parse_key


def public_keys(directory: Path, *tenants: str) -> dict[tuple[str, str], str]:
    return {
        (tenant, role): Signer.from_file(seed_file(directory, tenant, role)).public_key
        for tenant in tenants
        for role in ROLES
    }


def test_the_server_takes_what_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "conf", ServerPlan(["acme", "4711"], store_dir=tmp_path / "js"))
    told = subprocess.run([find_binary(), "-t", "-c", path], capture_output=True, text=True, timeout=30, check=False)
    assert told.returncode == 0, told.stderr
    text = path.read_text()
    assert all(key in text for key in public_keys(tmp_path / "conf", "acme", "4711").values())
    assert "sync_interval: always" in text
    assert "imports" not in text
    assert "exports" not in text


def test_seeds_are_the_owners_alone_and_in_no_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "conf", ServerPlan(["acme"]))
    assert stat.S_IMODE((tmp_path / "conf").stat().st_mode) == 0o700
    for role in ROLES:
        seed = seed_file(tmp_path / "conf", "acme", role)
        assert stat.S_IMODE(seed.stat().st_mode) == 0o600
        assert seed.read_text().strip() not in path.read_text()
    assert len({inbox_prefix("acme", role) for role in ROLES}) == len(ROLES)


def test_keys_are_kept_until_they_are_rotated(tmp_path: Path) -> None:
    plan = ServerPlan(["acme", "zeta"])
    write(tmp_path, plan)
    first = public_keys(tmp_path, "acme", "zeta")
    write(tmp_path, plan)
    assert public_keys(tmp_path, "acme", "zeta") == first
    write(tmp_path, plan, rotate=["acme"])
    second = public_keys(tmp_path, "acme", "zeta")
    assert {name for name in first if first[name] != second[name]} == {("acme", role) for role in ROLES}
    assert not list(tmp_path.glob(".*")), "nothing half written is left"


def test_tls_is_written_as_it_is_asked_for(tmp_path: Path) -> None:
    text = write(
        tmp_path, ServerPlan(["a"], tls=Tls(Path("c.pem"), Path("k.pem"), Path("ca.pem"), verify=True))
    ).read_text()
    for line in ('cert_file: "c.pem"', 'key_file: "k.pem"', 'ca_file: "ca.pem"', "verify: true"):
        assert line in text
    assert "tls" not in write(tmp_path, ServerPlan(["a"])).read_text()


@pytest.mark.parametrize(
    ("tenants", "said"), [([], "no tenant"), (["a.b"], "is not 1 to 64"), (["a", "a"], "twice"), (["a>"], "is not 1")]
)
def test_wrong_tenants_are_told(tenants: list[str], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        ServerPlan(tenants)


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="not planned: zeta"):
        write(tmp_path, ServerPlan(["acme"]), rotate=["zeta"])
    seed_file(tmp_path, "acme", "client").write_text("no seed")
    with pytest.raises(Misconfigured, match="holds no seed"):
        write(tmp_path, ServerPlan(["acme"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="cannot write"):
        write(tmp_path / "file" / "conf", ServerPlan(["acme"]))
    with pytest.raises(Misconfigured, match="--tls-ca"):
        ServerPlan(["a"], tls=Tls(Path("c"), Path("k"), verify=True))


def test_the_command_says_how_each_user_logs_in(tmp_path: Path) -> None:
    run = CliRunner().invoke(nats_config, [str(tmp_path / "conf"), "--tenant", "acme", "--json"], standalone_mode=False)
    told = orjson.loads(run.stdout)
    assert Path(told["config"]).is_file()
    assert Path(told["tenants"]).is_file()
    assert [user["user"] for user in told["users"]] == list(ROLES)
    assert all(Path(user["nkey_seed_file"]).is_file() for user in told["users"])
    plain = CliRunner().invoke(nats_config, [str(tmp_path / "conf"), "--tenant", "acme", "--sync-lazy"])
    assert 'inbox_prefix = "_INBOX_acme_client"' in plain.stdout
    assert "sync_interval" not in Path(told["config"]).read_text()


@pytest.mark.parametrize(
    ("listen", "tls", "url"),
    [
        ("127.0.0.1:4333", None, "nats://127.0.0.1:4333"),
        ("0.0.0.0:4222", None, "nats://127.0.0.1:4222"),
        ("nats.example:4222", Tls(Path("c.pem"), Path("k.pem")), "tls://nats.example:4222"),
    ],
    ids=["loopback", "every address", "tls"],
)
def test_the_settings_of_tenants_fit_the_accounts(tmp_path: Path, listen: str, tls: Tls | None, url: str) -> None:
    write(tmp_path, ServerPlan(["acme", "4711"], listen=listen, tls=tls))
    (tmp_path / "meshforge.toml").write_text('workspaces = ["acme/a", "4711/a"]\n' + tenants_file(tmp_path).read_text())
    settings = load_settings(tmp_path / "meshforge.toml", environ={})
    for tenant in ("acme", "4711"):
        own = settings.of_tenant(tenant)
        assert (own.url, own.store) == (url, tmp_path / f"{tenant}.db")
        assert own.nkey_seed_file == seed_file(tmp_path, tenant, "runtime")
        assert own.inbox_prefix == inbox_prefix(tenant, "runtime")
        assert connect_options(own).nkey_seed


@pytest.mark.parametrize("options", [["--tls-cert", "c.pem"], ["--tls-verify"], ["--tls-ca", "ca.pem"]])
def test_half_of_tls_is_wrong_usage(tmp_path: Path, options: list[str]) -> None:
    run = CliRunner().invoke(nats_config, [str(tmp_path), "--tenant", "acme", *options])
    assert run.exit_code == 2
    assert "--tls-" in run.output


# -- clusters --------------------------------------------------------------------------------------------------

NODES = (Node("n1", "127.0.0.1:4222", "127.0.0.1:6222"), Node("n2", "0.0.0.0:4222", "n2:6222"))


def test_a_cluster_has_a_file_for_each_node_and_the_same_keys_in_all(tmp_path: Path) -> None:
    plan = ServerPlan(["acme"], store_dir=tmp_path / "js", nodes=NODES, cluster="shop", monitor="127.0.0.1:8222")
    assert write(tmp_path / "conf", plan) == config_file(tmp_path / "conf", NODES[0])
    for node in NODES:
        path = config_file(tmp_path / "conf", node)
        tried = subprocess.run(
            [find_binary(), "-t", "-c", path], capture_output=True, text=True, timeout=30, check=False
        )
        assert tried.returncode == 0, tried.stderr
        text = path.read_text()
        assert all(key in text for key in public_keys(tmp_path / "conf", "acme").values())
        assert f'listen: "{node.listen}"' in text
        assert f'server_name: "{node.name}"' in text
        assert f'store_dir: "{tmp_path / "js" / node.name}"' in text
        assert 'routes: ["nats://127.0.0.1:6222", "nats://n2:6222"]' in text
        assert 'http: "127.0.0.1:8222"' in text
    told = load_settings(tenants_file(tmp_path / "conf"), environ={}, flags={"workspaces": ("acme/w",)})
    assert told.of_tenant("acme").url == "nats://127.0.0.1:4222,nats://n2:4222"
    assert 'listen: "127.0.0.1:6222"' in config_file(tmp_path / "conf", NODES[0]).read_text()
    assert 'listen: "0.0.0.0:6222"' in config_file(tmp_path / "conf", NODES[1]).read_text()


def test_a_node_as_the_command_line_has_it() -> None:
    assert parse_node("n2=0.0.0.0:4222,n2:6222") == NODES[1]
    for wrong in ("n2", "n2=0.0.0.0:4222", "n2=a,b", "=a:1,b:2", "n2=a:1,b:2,c:3"):
        with pytest.raises(Misconfigured, match="is not NAME=HOST:PORT,HOST:PORT"):
            parse_node(wrong)


@pytest.mark.parametrize(
    ("nodes", "cluster", "said"),
    [
        ((NODES[0], NODES[0]), "shop", "named twice"),
        ((Node("a b", "h:1", "h:2"),), "shop", "'a b'"),
        ((), "a b", "'a b'"),
    ],
    ids=["twice", "name", "cluster"],
)
def test_wrong_nodes_are_told(nodes: tuple[Node, ...], cluster: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        ServerPlan(["acme"], nodes=nodes, cluster=cluster)


def test_a_single_server_is_in_no_cluster(tmp_path: Path) -> None:
    text = write(tmp_path, ServerPlan(["acme"])).read_text()
    assert "cluster" not in text
    assert "http" not in text


def test_each_role_signs_for_its_own_principals(tmp_path: Path) -> None:
    write(tmp_path, ServerPlan(["acme"]))
    keys = public_keys(tmp_path, "acme")
    entries = [parse_key(text) for text in signing_entries(tmp_path, "acme")]
    assert [(entry.kind, entry.who, entry.public_key) for entry in entries] == [
        ("user", "*", keys["acme", "client"]),
        ("system", "*", keys["acme", "operator"]),
        ("*", "*", keys["acme", "runtime"]),
    ]
    with pytest.raises(Misconfigured, match="signing seed"):
        signing_entries(tmp_path, "zeta")


def test_the_command_writes_a_cluster(tmp_path: Path) -> None:
    nodes = ["--node", "n1=127.0.0.1:4222,127.0.0.1:6222", "--node", "n2=0.0.0.0:4222,n2:6222"]
    done = CliRunner().invoke(nats_config, [str(tmp_path), "--tenant", "acme", *nodes, "--json"], standalone_mode=False)
    assert orjson.loads(done.output)["configs"] == [str(tmp_path / "n1.conf"), str(tmp_path / "n2.conf")]

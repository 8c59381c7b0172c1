"""Settings of single tenants: what they inherit, what is refused, and who shares a site."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshforge_trio.config import TENANT_KEYS, Settings, load_settings
from meshforge_trio.errors import Misconfigured
from meshforge_trio.sites import sites, stores

TWO = 'workspaces = ["acme/shop", "zeta/shop", "acme/lab"]\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a file of settings."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str) -> None:
    Path("meshforge.toml").write_text(text)


# -- what holds for a tenant ---------------------------------------------------------------------------------------


def test_what_a_section_does_not_give_is_inherited() -> None:
    written(
        TWO + 'url = "nats://all:1"\ntls_ca_file = "ca.pem"\n[tenants.acme]\nstore = "acme.db"\ninbox_prefix = "_A"\n'
    )
    settings = load_settings(environ={"MESHFORGE_TENANTS__ACME__URL": "nats://acme:1"})
    acme, zeta = settings.of_tenant("acme"), settings.of_tenant("zeta")
    assert (acme.url, acme.store, acme.inbox_prefix) == ("nats://acme:1", Path("acme.db"), "_A")
    assert (zeta.url, zeta.store, zeta.inbox_prefix) == ("nats://all:1", Path("meshforge.db"), "_INBOX")
    assert acme.tls_ca_file == zeta.tls_ca_file == Path("ca.pem")
    assert acme.tenants == {}
    assert settings.of_tenant("nobody") == zeta


def test_every_key_of_a_tenant_is_a_setting() -> None:
    lines = "".join(f'{key} = "x"\n' for key in TENANT_KEYS)
    written(f"{TWO}[tenants.acme]\n{lines}")
    acme = load_settings(environ={}).of_tenant("acme")
    assert {str(getattr(acme, key)) for key in TENANT_KEYS} == {"x"}


def test_a_path_of_a_tenant_is_relative_to_its_file() -> None:
    Path("etc").mkdir()
    Path("etc/mesh.toml").write_text(TWO + '[tenants.acme]\nstore = "acme.db"\n')
    assert load_settings(Path("etc/mesh.toml"), environ={}).of_tenant("acme").store == Path("etc/acme.db")


@pytest.mark.parametrize(
    ("own", "left"),
    [
        ('token = "t"', {"token": "t"}),
        ('nkey_seed_file = "s.nk"', {"nkey_seed_file": Path("s.nk")}),
        ('password = "other"', {"user": "u", "password": "other"}),
        ('store = "acme.db"', {"user": "u", "password": "p", "credentials_file": Path("c.creds")}),
    ],
)
def test_one_way_to_log_in_is_inherited_whole_or_not_at_all(own: str, left: dict[str, object]) -> None:
    written(f'{TWO}user = "u"\npassword = "p"\ncredentials_file = "c.creds"\n[tenants.acme]\n{own}\n')
    acme = load_settings(environ={}).of_tenant("acme")
    names = ("user", "password", "token", "nkey_seed_file", "credentials_file")
    assert {name: value for name in names if (value := getattr(acme, name)) is not None} == left


def test_a_flag_stands_over_every_section() -> None:
    written(TWO + '[tenants.acme]\nstore = "acme.db"\nurl = "nats://acme:1"\n')
    settings = load_settings(environ={"MESHFORGE_URL": "nats://env:1"}, flags={"store": "copy.db"})
    acme = settings.of_tenant("acme")
    assert (acme.store, acme.url) == (Path("copy.db"), "nats://acme:1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tenants.else]\nstore = 'x'", r"\[tenants.else\] is set, and no workspace is of tenant 'else'"),
        ("[tenants.acme]\nstores = 'x'", "unknown key 'tenants.acme.stores'; the nearest .* 'tenants.acme.store'"),
        ("[tenants.acme]\ndrain_s = 1", "unknown key 'tenants.acme.drain_s'; the nearest known one is 'drain_s'"),
        ("[tenants.acme]\nstore = 1", "tenants.acme.store is 1, it must be a path"),
        ("[tenants.acme.engine]\nbatch = 1", "unknown key 'tenants.acme.engine'"),
        ("[tenants.'a b']\nstore = 'x'", "unknown key 'tenants.a b'"),
        ("[tenants]\nacme = 1", "tenants.acme is a section"),
    ],
)
def test_a_wrong_section_is_told(text: str, told: str) -> None:
    written(TWO + text)
    with pytest.raises(Misconfigured, match=told):
        load_settings(environ={})


def test_a_command_for_one_workspace_makes_no_stranger_of_the_others() -> None:
    written(TWO + "[tenants.acme]\nstore = 'a.db'\n[tenants.zeta]\nstore = 'z.db'\n")
    settings = load_settings(environ={}, flags={"workspaces": ("zeta/shop",)})
    assert [site.settings.store for site in sites(settings)] == [Path("z.db")]
    # And what only the command line names is no stranger either.
    written("[tenants.acme]\nstore = 'a.db'\n")
    assert load_settings(environ={}, flags={"workspaces": ("acme/shop",)}).of_tenant("acme").store == Path("a.db")


def test_secrets_of_tenants_do_not_show() -> None:
    assert "hunter2" not in repr(Settings(tenants={"acme": {"password": "hunter2", "url": "nats://me:hunter2@host"}}))


# -- who shares a site ---------------------------------------------------------------------------------------------


def test_without_sections_there_is_one_site_with_the_settings_as_they_are() -> None:
    settings = Settings(workspaces=("a/x", "b/x", "a/y"))
    (site,) = sites(settings)
    assert site.settings == settings
    assert (site.tenants, site.name) == (("a", "b"), "a, b")


def test_tenants_share_a_site_when_store_and_log_in_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    settings = Settings(
        workspaces=("a/x", "b/x", "c/x", "d/x", "e/x"),
        store=Path("one.db"),
        tenants={
            "b": {"store": tmp_path / "link" / "one.db"},
            "c": {"store": Path("other.db")},
            "d": {"token": "t"},
            "e": {"store": Path("other.db"), "token": "t"},
        },
    )
    found = sites(settings)
    assert [site.tenants for site in found] == [("a", "b"), ("c",), ("d",), ("e",)]
    assert [site.settings.workspaces for site in found] == [("a/x", "b/x"), ("c/x",), ("d/x",), ("e/x",)]
    assert found[0].place == found[2].place != found[1].place == found[3].place


def test_each_store_is_read_once_and_for_its_own_tenants() -> None:
    tenants: dict[str, dict[str, object]] = {"b": {"store": Path("b.db")}, "c": {"token": "t"}}
    settings = Settings(workspaces=("a/x", "b/x", "c/x"), store=Path("a.db"), tenants=tenants)
    asked = ("a", "b", "c", "nobody")
    found = [(path, [tenant for tenant in asked if own(tenant)]) for path, own in stores(settings)]
    assert found == [(Path("a.db"), ["a", "c", "nobody"]), (Path("b.db"), ["b"])]
    # A single one may hold workspaces that nobody serves any more.
    ((path, own),) = stores(Settings(workspaces=("a/x",), store=Path("a.db")))
    assert (path, own("gone")) == (Path("a.db"), True)

"""TLS as `meshforge nats-config` writes it, dialled: the server's certificate is checked, by whoever dials."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshforge_trio.policy import ExitCode

from .sites_world import TENANTS, Sites, sites

_NOW: Final = datetime.datetime.now(datetime.UTC)
_DAY: Final = datetime.timedelta(days=1)


@attrs.frozen
class Authority:
    """Who signs certificates. `path` is its own, in PEM."""

    key: ec.EllipticCurvePrivateKey
    name: x509.Name
    path: Path

    @staticmethod
    def made(path: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {path.stem}")])
        found = _builder(name, name, key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        found = found.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        signed = found.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return Authority(key, name, path)

    def certifies(self, address: str, cert: Path, key: Path) -> None:
        """Write a key, and a certificate that it is the server at `address`."""
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nats-server")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        found = _builder(subject, self.name, own.public_key()).add_extension(names, critical=False)
        signed = found.add_extension(identifier, critical=False).sign(self.key, hashes.SHA256())
        cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key.write_bytes(own.private_bytes(serialization.Encoding.PEM, form, none))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=_NOW - _DAY,
        not_valid_after=_NOW + _DAY,
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.made(tmp_path / "ca.pem")


@pytest.fixture
def secured(tmp_path: Path, authority: Authority, request: pytest.FixtureRequest) -> Iterator[Sites]:
    """Both tenants' accounts on a server whose certificate is for 127.0.0.1, unless the test has it otherwise."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.certifies(getattr(request, "param", "127.0.0.1"), cert, key)
    with sites(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as made:
        yield made


def trusting(secured: Sites, file: Path) -> None:
    secured.settle(f'tls_ca_file = "{file}"')


def test_who_knows_the_authority_is_served_over_tls(secured: Sites, authority: Authority) -> None:
    assert f'url = "tls://127.0.0.1:{secured.server_port}"' in (secured.home / "meshforge.toml").read_text()
    trusting(secured, authority.path)
    with secured.served() as running:
        for tenant in TENANTS:
            args = ("order", "create", "{}", "--entity", "o-1", "--workspace", f"{tenant}/shop")
            assert secured.shop.answers("call", *args)["name"] == "created"
        assert secured.drained(running) == ExitCode.OK


def refused(secured: Sites) -> str:
    """What a command says that is not connected, to either tenant."""
    args = ("send", "order", "create", "{}", "--timeout", "2")
    results = [secured.shop.does(*args, "--workspace", f"{tenant}/shop") for tenant in TENANTS]
    assert {result.code for result in results} == {ExitCode.FAILED}, results
    return results[0].err


def test_who_does_not_know_the_authority_does_not_connect(secured: Sites, tmp_path: Path) -> None:
    assert "certificate verify failed" in refused(secured)
    trusting(secured, Authority.made(tmp_path / "other.pem").path)
    assert "certificate verify failed" in refused(secured)


@pytest.mark.parametrize("secured", ["127.0.0.2"], indirect=True)
def test_a_certificate_of_another_host_is_refused(secured: Sites, authority: Authority) -> None:
    trusting(secured, authority.path)
    assert "certificate is not valid for" in refused(secured)


def test_a_runtime_that_trusts_nobody_keeps_dialling_and_says_why(secured: Sites) -> None:
    with secured.started() as running:
        (line, *_) = running.said("the broker session ended")
        assert "certificate verify failed" in line["reason"]
        said = secured.becomes("/readyz", 503, "certificate verify failed")
        assert "acme: no broker session" in said
        assert secured.drained(running) == ExitCode.OK


def test_a_file_that_holds_no_certificate_is_told(secured: Sites, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    trusting(secured, tmp_path / "empty.pem")
    result = secured.shop.does("send", "order", "create", "--workspace", "acme/shop")
    assert result.code == ExitCode.MISCONFIGURED
    assert "credentials of the broker" in result.err

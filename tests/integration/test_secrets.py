"""Secrets are planted wherever one can be set or sent; then everything that is said and written is searched for them.

A secret is searched for as it is, reversed from base64 at any offset, and as hexadecimal. Where one rightly stands is
listed; that it is found there shows that the search finds.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import nkeys
import pytest
import trio

from meshforge_trio.broker.bridge import ConnectOptions, connect, hpub, open_loop
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.envelope import CommandEnvelope, SecurityContext, encode
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import EVENTS, FAILED

from .cli_world import DEADLINE_S, Result, Running, Shop, eventually, free_ports, shop
from .dlq_world import stop

Login = Literal["password", "url", "token", "nkey"]
LOGINS: Final[tuple[Login, ...]] = ("password", "url", "token", "nkey")
ROOT: Final = Path(__file__).parents[2]
_LIMIT: Final = 1 << 20


def new_secret() -> str:
    return secrets.token_hex(16)


def new_seed() -> tuple[str, str]:
    """An nkey's seed and public key."""
    seed: Any = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
    pair: Any = nkeys.from_seed(bytearray(seed))  # type: ignore[no-untyped-call]
    return bytes(seed).decode(), bytes(pair.public_key).decode()


def forms(secret: str) -> Iterator[bytes]:
    """As it may be written: plain, as hexadecimal, and within the base64 of something longer."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    for before in range(3):
        # What depends on the bytes around it is cut off.
        yield base64.b64encode(b"\0" * before + raw)[4 if before else 0 : -4]


@attrs.define(eq=False)
class Haul:
    """What was planted, and all that was said, by the place where it stood."""

    planted: dict[str, str] = attrs.field(factory=dict)
    said: dict[str, bytes] = attrs.field(factory=dict)

    def plant(self, name: str, secret: str = "") -> str:
        """A secret under this name."""
        self.planted[name] = secret or new_secret()
        return self.planted[name]

    def take(self, place: str, *texts: str | bytes) -> None:
        """Keep what was said there."""
        self.said[place] = b"\n".join(
            [self.said.get(place, b""), *(text.encode() if isinstance(text, str) else text for text in texts)]
        )

    def ran(self, place: str, result: Result) -> Result:
        """Keep what a command said."""
        self.take(place, result.out, result.err)
        return result

    def found(self) -> set[tuple[str, str]]:
        """(secret, place) of every one that shows."""
        return {
            (name, place)
            for name, secret in self.planted.items()
            for place, text in self.said.items()
            if any(form in text for form in forms(secret))
        }


# -- a day of work ---------------------------------------------------------------------------------------------------

#: Where a secret that was sent as content of a command rightly stands: an operator who mends a dead letter needs it
#: whole, an event of the agent's own is its business, and who publishes a header has it in the dead letter, too.
RIGHTLY: Final = {
    *(("poison payload", place) for place in ("dlq show", "dlq export", "store", "failed stream")),
    *(("failing payload", place) for place in ("dlq export", "store", "failed stream")),
    *(("dead payload", place) for place in ("dlq show", "dlq export", "store", "failed stream")),
    *(("poison header", place) for place in ("dlq show", "dlq export", "store", "failed stream")),
    *(("decided payload", place) for place in ("call", "events", "store", "event stream")),
}


def login(haul: Haul, kind: Login, home: Path) -> tuple[str, dict[str, object], str]:
    """The server's configuration, the settings of who logs in, and user info for the address."""
    if kind == "nkey":
        seed, public = new_seed()
        haul.plant("nkey seed", seed)
        (home / "user.nk").write_text(seed)
        return f"authorization {{ users = [ {{ nkey: {public} }} ] }}", {"nkey_seed_file": str(home / "user.nk")}, ""
    secret = haul.plant(kind)
    if kind == "token":
        return f'authorization {{ token: "{secret}" }}', {"token": secret}, ""
    config = f'authorization {{ user: kim, password: "{secret}" }}'
    return (config, {}, f"kim:{secret}@") if kind == "url" else (config, {"user": "kim", "password": secret}, "")


def test_nothing_that_is_secret_is_said(tmp_path: Path) -> None:
    """The worker logs in by an nkey, everybody else by user info in the address."""
    haul = Haul()
    seed, nkey = new_seed()
    (tmp_path / "user.nk").write_text(haul.plant("nkey seed", seed))
    password = haul.plant("password")
    users = f'{{ nkey: {nkey} }}, {{ user: kim, password: "{password}" }}'
    with PrivateServer(config=f"authorization {{ users = [ {users} ] }}") as server:
        at = shop(tmp_path, server.url.replace("://", f"://kim:{password}@"))
        signing_seed, public = new_seed()
        haul.plant("signing seed", signing_seed)
        (tmp_path / "sign.nk").write_text(signing_seed)
        port = free_ports()
        lines = {
            "signing_seed_file": str(tmp_path / "sign.nk"),
            "signing_keys": [f"default *:* {public}"],
            "permissions": ["deny user:guest -> *", "allow user:* -> *", "allow system:* -> *"],
        }
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        (tmp_path / "meshforge.toml").write_text(text + "[engine.retry]\nlimit = 2\ndelays_s = [0.05]\n")
        by_nkey = {"MESHFORGE_URL": server.url, "MESHFORGE_NKEY_SEED_FILE": str(tmp_path / "user.nk")}
        with at.served("--log-level", "debug", "--health-port", str(port), env=by_nkey) as worker:
            send_everything(at, haul)
            for path in ("/livez", "/readyz", "/healthz", "/metrics"):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE_S) as answer:
                    haul.take("health", answer.read())
            crash(at, haul, worker)
        look_everywhere(at, haul)
    for place in ("store", "event stream", "failed stream"):
        files = [at.store.parent] if place == "store" else [tmp_path / place]
        haul.take(place, *(file.read_bytes() for folder in files for file in folder.rglob("*") if file.is_file()))
    assert len(haul.said) == 15
    assert all(haul.said.values()), "every place said something"
    assert haul.found() == RIGHTLY


def send_everything(at: Shop, haul: Haul) -> None:
    """Commands that are decided, refused, not let in, or can never be read."""

    def call(place: str, action: str, name: str, *options: str) -> Result:
        body = json.dumps({"items": haul.plant(name)})
        return haul.ran(place, at.does("call", "order", action, body, "--entity", "o-1", "--json", *options))

    assert call("call", "create", "decided payload").code == ExitCode.OK
    assert call("call refused", "create", "refused payload").document["name"] == "refused"
    assert call("call refused", "update", "conflict payload", "--expected-version", "9").document["name"] == "conflict"
    forbidden = call("call refused", "update", "forbidden payload", "--principal", "guest")
    assert forbidden.document["payload"]["code"] == "forbidden"
    seed = at.home / "stranger.nk"
    seed.write_text(haul.plant("stranger's seed", new_seed()[0]))
    unknown = haul.ran(
        "call refused",
        at.does(
            "call", "order", "update", json.dumps({"items": haul.plant("stranger's payload")}), "--entity", "o-1",
            "--json", "--log-level", "debug", env={"MESHFORGE_SIGNING_SEED_FILE": str(seed)},
        ),
    )  # fmt: skip
    assert unknown.document["payload"]["code"] == "unknown_key"
    failing = at.does("call", "order", "slow", json.dumps({"s": haul.plant("failing payload")}), "--entity", "o-3")
    assert "TypeError" in haul.ran("call refused", failing).out
    publish(
        at,
        ("cmd.default.demo.order.create", b"{" + haul.plant("poison payload").encode(), haul.plant("poison header")),
        ("cmd.default.demo.order.create", trespass(haul.plant("trespass payload")), haul.plant("trespass header")),
    )
    eventually(lambda: len(at.does("dlq", "list", "--json").documents) == 2, "the poison is set aside")


def trespass(secret: str) -> bytes:
    """A command whose envelope names another tenant than its subject."""
    command = CommandEnvelope(
        id="t", tenant="other", workspace="demo", agent="order", action="create", idempotency_key="t", entity_id="o-1",
        payload={"items": secret}, security_context=SecurityContext("kim", "user"),
    )  # fmt: skip
    return encode(command)


def publish(at: Shop, *messages: tuple[str, bytes, str]) -> None:
    """What no client of ours would send: (subject, body, secret of a header)."""

    async def run() -> None:
        async with open_loop():
            connection = await connect(ConnectOptions(urls=(at.url,)))
            for number, (subject, body, secret) in enumerate(messages):
                headers = {"Authorization": f"Bearer {secret}"}
                connection.write(hpub(subject, "", f"m{number}", headers, body, limit=_LIMIT))
            await connection.round_trip(5.0)
            await connection.aclose()

    trio.run(run)


def crash(at: Shop, haul: Haul, worker: Running) -> None:
    """The worker dies of a command, and its successors until that is set aside; then it drains."""
    dead = json.dumps({"items": haul.plant("dead payload")})
    assert at.does("send", "order", "die", dead, "--entity", "o-2", "--key", "dead").code == ExitCode.OK
    assert worker.ended() == 7
    haul.take("worker log", worker.log.read_bytes())
    for _ in range(4):
        with at.starts("run", "shop:app", "--json", "--log-level", "debug") as successor:

            def set_aside(log: Running = successor) -> bool:
                return any(line["event"] == "dead letter" and line["key"] == "dead" for line in log.lines())

            eventually(lambda: successor.process.poll() is not None or set_aside(), "it dies, too, or sets it aside")
            if successor.process.poll() is None:
                stop(successor)
            haul.take("worker log", successor.log.read_bytes())
            if set_aside():
                return
    raise AssertionError("it was never set aside")


def look_everywhere(at: Shop, haul: Haul) -> None:
    """Every command that looks, in both forms, and what streams hold."""
    poison = next(d["key"] for d in at.does("dlq", "list", "--json").documents if d["key"].startswith("raw:"))
    for place, *command in (
        ("dlq list", "dlq", "list"),
        ("dlq list", "dlq", "list", "--json"),
        ("dlq list", "dlq", "redrive", "--all", "--dry-run", "--json"),
        ("dlq show", "dlq", "show", "dead"),
        ("dlq show", "dlq", "show", poison),
        ("dlq show", "dlq", "show", poison, "--json"),
        ("dlq export", "dlq", "export", "-"),
        ("sweep", "dlq", "sweep", "--older-than", "0s"),
        ("health command", "health"),
        ("health command", "health", "--json"),
        ("doctor", "doctor", "--app", "shop:app"),
        ("doctor", "doctor", "--json", "--log-level", "debug"),
        ("nats-config", "nats-config", str(at.home / "nats"), "--tenant", "acme"),
        ("events", "events"),
        ("events", "events", "--json"),
    ):
        haul.ran(place, at.does(*command))
    for role in ("runtime", "client", "operator"):
        haul.plant(f"seed of {role}", next((at.home / "nats").rglob(f"*{role}*.nk")).read_text().strip())
    for stream in ("event stream", "failed stream"):
        (at.home / stream).mkdir()
    trio.run(_copy_streams, at)


async def _copy_streams(at: Shop) -> None:
    async with open_loop(), open_broker(at.url) as broker:
        for stream, subject, folder in ((EVENTS, "evt.>", "event stream"), (FAILED, "failed.>", "failed stream")):
            for message in await broker.read_back(stream, subject, 1, 1000):
                (at.home / folder / str(message.seq)).write_bytes(message.body)


# -- what goes wrong before anything works -----------------------------------------------------------------------------

#: What a person may get wrong around a secret: lines of the settings, with `{0}` where it stands.
WRONG: Final[Mapping[str, str]] = {
    "a password that is no text": "password = 77{0}",
    "a token in a list": 'token = ["{0}"]',
    "a password with a line missing": 'password = "{0}',
    "a name that is misspelt": 'pasword = "{0}"',
    "a password in a section": '[engine]\npassword = "{0}"',
    "an address without a port": 'url = "nats://kim:{0}@127.0.0.1:port"',
    "an address in a list": 'url = ["nats://kim:{0}@127.0.0.1:4222"]',
    "an address of nobody": 'url = "nats://kim:{0}@127.0.0.1:9"',
    "an address that is none": 'url = "kim:{0}@"',
    "a token as address": 'url = "nats://{0}@127.0.0.1:9, nats://{0}@127.0.0.1:10"',
    "a seed for a public key": 'signing_keys = ["default user:kim {0}"]',
    "a seed for an entry": 'signing_keys = ["{0}"]',
    "a seed for a path": 'nkey_seed_file = "{0}"\nurl = "nats://127.0.0.1:9"',
    "a rule that holds it": 'permissions = ["allow user:{0}"]',
    "a password of a tenant that is no text": "[tenants.default]\npassword = 77{0}",
    "an address of a tenant": '[tenants.default]\nurl = "nats://kim:{0}@127.0.0.1:port"',
    "a token of nobody's tenant": '[tenants.nobody]\ntoken = "{0}"',
    "a misspelt name of a tenant": '[tenants.default]\ntokken = "{0}"',
    "an nkey file with something else": 'nkey_seed_file = "file"',
    "a signing file with something else": 'signing_seed_file = "file"',
    "a credentials file with something else": 'credentials_file = "file"',
    "a key file for a certificate": 'tls_ca_file = "file"',
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_set_wrongly_is_told_without_its_value(tmp_path: Path, wrong: str) -> None:
    haul = Haul()
    number = str(secrets.randbelow(10**15) + 10**15)
    secret = haul.plant(wrong, number if wrong.endswith("no text") else new_seed()[0])
    at = shop(tmp_path, "")
    (tmp_path / "file").write_text(f"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n")
    (tmp_path / "meshforge.toml").write_text(WRONG[wrong].format(secret))
    for place, *command in (
        ("run", "run", "shop:app", "--log-level", "debug"),
        ("call", "call", "order", "get", "--timeout", "0.5"),
        ("debug", "--debug", "call", "order", "get", "--timeout", "0.5"),
        ("doctor", "doctor", "--json"),
    ):
        try_to(at, haul, place, command)
    assert len(haul.said) == 4
    assert all(haul.said.values()), "every command said what is wrong"
    assert haul.found() == set()


def try_to(at: Shop, haul: Haul, place: str, command: list[str]) -> None:
    """Run a command that cannot work. A worker dials for ever, so it is told to end once it has said something."""
    environment = {name: value for name, value in at.environment().items() if name != "MESHFORGE_URL"}
    process = subprocess.Popen(
        at.command(*command), cwd=at.home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, process_group=0,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if place == "run":
            process.terminate()
        rest, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    assert process.returncode != ExitCode.OK or place == "run"
    haul.take(place, first, rest)


@pytest.mark.parametrize("kind", LOGINS)
def test_who_is_not_let_in_is_told_without_the_secret(tmp_path: Path, kind: Login) -> None:
    (tmp_path / "server").mkdir()
    config, _, _ = login(Haul(), kind, tmp_path / "server")
    haul = Haul()
    _, settings, userinfo = login(haul, kind, tmp_path)
    with PrivateServer(config=config) as server:
        at = shop(tmp_path, server.url.replace("://", f"://{userinfo}"))
        lines = {**settings, "url": at.url}
        (tmp_path / "meshforge.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in lines.items()))
        for place, *command in (
            ("run", "run", "shop:app", "--log-level", "debug"),
            ("call", "call", "order", "get", "--timeout", "0.5"),
            ("debug", "--debug", "call", "order", "get", "--timeout", "0.5"),
            ("doctor", "doctor", "--json"),
            ("sweep", "dlq", "sweep"),
        ):
            try_to(at, haul, place, command)
    assert all(haul.said.values()), "every command said that it was not let in"
    assert haul.found() == set()


def test_reports_of_the_harness_hold_nothing_of_the_environment(tmp_path: Path) -> None:
    haul = Haul()
    planted = {name: haul.plant(name) for name in ("MESHFORGE_PASSWORD", "MESHFORGE_TOKEN", "AWS_SECRET_ACCESS_KEY")}
    planted["MESHFORGE_URL"] = f"nats://kim:{haul.plant('url')}@127.0.0.1:9"
    at = attrs.evolve(shop(tmp_path, ""), home=ROOT)
    command = (
        "run", "crash-matrix", "--plan", "worker#1:after_store@1=kill", "--keep", "--report", str(tmp_path / "runs"),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "chaos", *command], cwd=ROOT, env=at.environment() | planted, capture_output=True,
        text=True, timeout=4 * DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.OK, done
    haul.take("said", done.stdout, done.stderr)
    for file in (tmp_path / "runs").rglob("*"):
        if file.is_file():
            haul.take(file.suffix, file.read_bytes())
    assert {".json", ".jsonl", ".log", ".db"} <= haul.said.keys()
    assert haul.found() == set()


@pytest.mark.parametrize("form", range(5))
def test_the_search_finds_every_form(form: int) -> None:
    haul = Haul()
    secret = haul.plant("it")
    written = (
        secret,
        secret.encode().hex(),
        *(base64.b64encode(b"x" * before + secret.encode() + b"y").decode() for before in range(3)),
    )[form]
    haul.take("here", f'{{"a": "{written}"}}')
    haul.take("there", "nothing of it")
    assert haul.found() == {("it", "here")}

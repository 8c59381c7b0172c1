"""Settings: every number that a person may want to change, with its default; and where they come from.

One TOML file, environment variables over it, flags over both. A key is `batch` in `[engine]` of the file,
`MESHFORGE_ENGINE__BATCH` in the environment. Whatever is unknown, of another type or out of range is refused by name.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from meshforge_trio.errors import Misconfigured
from meshforge_trio.permissions import parse_rule
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.signing import parse_key
from meshforge_trio.subjects import is_token

__all__ = ["DEFAULT_FILE", "EngineSettings", "LogLevel", "Settings", "load_settings"]

#: Read from the working directory if it is there and no other file is named.
DEFAULT_FILE: Final = Path("meshforge.toml")

LogLevel = Literal["debug", "info", "warning", "error", "critical"]

_PREFIX: Final = "MESHFORGE_"
_AGENTS: Final = "agents"
# What may be set for one agent by its name.
_AGENT_SECTION: Final = re.compile(r"agents(\.[A-Za-z0-9_-]{1,64}(\.retry)?)?")
_AGENT_KEY: Final = re.compile(r"agents\.([A-Za-z0-9_-]{1,64})\.retry\.([a-z_]+)")
_DAY_S: Final = 86_400.0
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})

Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _between(low: float, high: float) -> Check:
    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not low <= value <= high:
            raise Misconfigured(f"{attribute.name} is {value}, it must be between {low:g} and {high:g}")

    return check


def _each_between(low: float, high: float) -> Check:
    one = _between(low, high)

    def check(settings: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not value:
            raise Misconfigured(f"{attribute.name} is empty")
        for item in value:
            one(settings, attribute, item)

    return check


def _rules(_: Any, _attribute: attrs.Attribute[Any], value: Any) -> None:
    for text in value:
        parse_rule(text)


def _signing_keys(_: Any, _attribute: attrs.Attribute[Any], value: Any) -> None:
    for text in value:
        parse_key(text)


def _workspaces(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not value:
        raise Misconfigured(f"{attribute.name} is empty: name at least one <tenant>/<workspace>")
    if len(set(value)) != len(value):
        raise Misconfigured(f"{attribute.name} names one twice: {', '.join(value)}")
    for workspace in value:
        parts = workspace.split("/")
        if len(parts) != 2 or not all(is_token(part) for part in parts):
            raise Misconfigured(
                f"{attribute.name}: {workspace!r:.150} is not <tenant>/<workspace>, each 1 to 64 of A-Z a-z 0-9 _ -"
            )


# The retry policy is pure and knows no files; what a person may set it to stands here.
_RETRY_CHECKS: Final[Mapping[str, Check]] = {
    "limit": _between(2, 1_000),
    "delays_s": _each_between(0.001, _DAY_S),
    "jitter": _between(0.0, 10.0),
    "handler_limit_s": _between(0.05, _DAY_S),
}


def _retry(_: Any, _attribute: attrs.Attribute[Any], value: RetryPolicy) -> None:
    for attribute in attrs.fields(RetryPolicy):
        if attribute.name in _RETRY_CHECKS:
            _RETRY_CHECKS[attribute.name](value, attribute, getattr(value, attribute.name))


@attrs.frozen
class EngineSettings:
    """How one engine works. Times in seconds.

    `batch` is the most commands of one turn. `publish_burst` splits a turn's publishes into pieces (0: one piece);
    fault tests set 1 so that a kill can fall between any two.
    """

    ack_wait_s: float = attrs.field(default=30.0, validator=_between(0.05, _DAY_S))
    max_ack_pending: int = attrs.field(default=4096, validator=_between(1, 1_000_000))
    batch: int = attrs.field(default=512, validator=_between(1, 65_536))
    duplicate_window_s: float = attrs.field(default=120.0, validator=_between(0.1, 30 * _DAY_S))
    replicas: int = attrs.field(default=1, validator=_between(1, 5))
    publish_timeout_s: float = attrs.field(default=5.0, validator=_between(0.01, 600))
    publish_burst: int = attrs.field(default=0, validator=_between(0, 65_536))
    cache_entities: int = attrs.field(default=10_000, validator=_between(0, 10_000_000))
    state_hash_entities_max: int = attrs.field(default=20_000, validator=_between(0, 10_000_000))
    idle_mark_s: float = attrs.field(default=0.25, validator=_between(0.0, 3600))
    standby_poll_s: float = attrs.field(default=0.1, validator=_between(0.001, 60))
    retry: RetryPolicy = attrs.field(factory=RetryPolicy, validator=_retry)


@attrs.frozen
class Settings:
    """How one process works. Times in seconds.

    `workspaces` are `tenant/workspace` pairs; every agent of the app serves each of them.
    `lease_ttl_s` is how long a holder that does not move keeps its scopes; a dead one loses them at once.
    `permissions` are rules as in `permissions.parse_rule`: who may send what to whom.
    `signing_keys` are lines as in `signing.parse_key`; with any, every command has to be signed by one of them.
    `signing_seed_file` is the key that this process signs with.
    `lock_manager` serves `sys_lock_manager` beside the app's agents.
    `principal` is who the commands of the command line come from (the login name unless set).
    `health_port` is where the health endpoint listens on `health_host`, 0 for none; worker N adds N.
    `agents` holds what is set for single agents: keys of `RetryPolicy` in `[agents.<name>.retry]`.
    """

    url: str = attrs.field(default="nats://127.0.0.1:4222", repr=False)
    store: Path = Path("meshforge.db")
    workspaces: tuple[str, ...] = attrs.field(default=("default/demo",), validator=_workspaces)
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    nkey_seed_file: Path | None = None
    credentials_file: Path | None = None
    tls_ca_file: Path | None = None
    inbox_prefix: str = "_INBOX"
    principal: str | None = None
    permissions: tuple[str, ...] = attrs.field(default=(), validator=_rules)
    signing_keys: tuple[str, ...] = attrs.field(default=(), validator=_signing_keys)
    signing_seed_file: Path | None = None
    lock_manager: bool = False
    lease_ttl_s: float = attrs.field(default=5.0, validator=_between(0.1, 600))
    drain_s: float = attrs.field(default=10.0, validator=_between(0.0, 3600))
    health_port: int = attrs.field(default=0, validator=_between(0, 65_535))
    health_host: Literal["127.0.0.1", "::1"] = "127.0.0.1"
    log_level: LogLevel = "info"
    log_json: bool = False
    engine: EngineSettings = attrs.field(factory=EngineSettings)
    agents: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)

    def retry_of(self, agent: str, own: RetryPolicy | None = None) -> RetryPolicy:
        """The policy of an agent: its own of the code, else the general one, under what is set for it by name."""
        return attrs.evolve(own or self.engine.retry, **self.agents.get(agent, {}))


# -- loading ---------------------------------------------------------------------------------------------------


@attrs.frozen
class _Key:
    """A setting that may be given: its dotted name, its type and its check."""

    name: str
    kind: Any
    attribute: attrs.Attribute[Any]

    def check(self, value: Any) -> None:
        validator: Any = self.attribute.validator
        if ".retry." in self.name:
            validator = _RETRY_CHECKS.get(self.attribute.name)
        if validator is not None:
            validator(None, self.attribute, value)


def _keys_of(cls: type[attrs.AttrsInstance], prefix: str = "") -> Iterator[_Key]:
    hints = typing.get_type_hints(cls)
    for attribute in attrs.fields(cls):
        kind = hints[attribute.name]
        if attribute.name == _AGENTS:
            continue
        if attrs.has(kind):
            yield from _keys_of(kind, f"{prefix}{attribute.name}.")
        else:
            yield _Key(prefix + attribute.name, kind, attribute)


_KEYS: Final = {key.name: key for key in _keys_of(Settings)}
_SECTIONS: Final = frozenset(name.rpartition(".")[0] for name in _KEYS) - {""}


def load_settings(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from a file, the environment and flags, the later over the earlier.

    Without `file`, `meshforge.toml` of the working directory is read if there is one. `flags` map dotted keys to
    values, where `None` means not given. Relative paths in a file are relative to it.

    Raises:
        Misconfigured: a file is missing or no TOML, or a key is unknown, of another type or out of range.
    """
    given: dict[str, Any] = {}
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    if file is not None:
        given |= _from_file(file)
    given |= _from_environment(os.environ if environ is None else environ)
    for name, value in (flags or {}).items():
        if value is not None:
            given[name] = _checked(_known(name, "command line"), value, "command line")
    settings: Settings = _build(Settings, given)
    return settings


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            table = tomllib.load(opened)
    except OSError as error:
        raise Misconfigured(f"config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"config file {path} is not TOML: {error}") from error
    given = {}
    for name, value in _flattened(table):
        key = _known(name, str(path))
        checked = _checked(key, value, str(path))
        given[name] = path.parent / checked if isinstance(checked, Path) else checked
    return given


def _flattened(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        full = prefix + name
        if isinstance(value, dict) and (full in _SECTIONS or _AGENT_SECTION.fullmatch(full)):
            yield from _flattened(value, f"{full}.")
        else:
            yield full, value


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    given = {}
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX):
            continue
        where = f"environment variable {variable}"
        key = _known(variable.removeprefix(_PREFIX).lower().replace("__", "."), where, _as_variable)
        given[key.name] = _checked(key, _parsed(key, environ[variable], where), where)
    return given


def _as_variable(name: str) -> str:
    return _PREFIX + name.upper().replace(".", "__")


def _known(name: str, where: str, spelled: Callable[[str], str] = str) -> _Key:
    agent = _AGENT_KEY.fullmatch(name)
    found = _KEYS.get(name if agent is None else f"engine.retry.{agent[2]}")
    if found is not None:
        return attrs.evolve(found, name=name)
    if name in _SECTIONS or _AGENT_SECTION.fullmatch(name):
        raise Misconfigured(f"{where}: {name} is a section with keys of its own, not a value")
    # A key in the wrong section is nearest to its namesake elsewhere.
    namesakes = [key for key in _KEYS if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = namesakes or difflib.get_close_matches(name, _KEYS, n=1, cutoff=0.0)
    raise Misconfigured(f"{where}: unknown key {name!r}; the nearest known one is {spelled(near[0])!r}")


def _parsed(key: _Key, text: str, where: str) -> Any:
    """The value that the text of an environment variable means for this key's type."""
    kind, _ = _without_none(key.kind)
    try:
        if kind is bool:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError
            return text.lower() in _TRUE
        if kind in (int, float):
            return kind(text)
        if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            return [item(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise Misconfigured(f"{where}: {text!r:.100} is not {_describe(kind)}") from error
    return text


def _checked(key: _Key, value: Any, where: str) -> Any:
    """`value` in the type of its key, within its range."""
    kind, optional = _without_none(key.kind)
    if value is None and optional:
        return None
    fitted = _fitted(kind, value)
    if fitted is None:
        # What a printed `Settings` leaves out is not told here either.
        shown = json.dumps(value, default=str) if key.attribute.repr else f"of type {type(value).__name__}"
        raise Misconfigured(f"{where}: {key.name} is {shown:.100}, it must be {_describe(kind)}")
    try:
        key.check(fitted)
    except Misconfigured as error:
        raise Misconfigured(f"{where}: {error}") from error
    return fitted


def _fitted(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or `None` if it is of another type. Nothing is coerced but a whole number to a float."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            return None
        items = tuple(_fitted(item, each) for each in value)
        return None if None in items else items
    if typing.get_origin(kind) is Literal:
        return value if value in typing.get_args(kind) else None
    if kind is float:
        return float(value) if type(value) in (int, float) and not math.isnan(value) else None
    if kind is Path:
        return Path(value) if isinstance(value, str | Path) and str(value) else None
    return value if type(value) is kind else None


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (rest,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return rest, True
    return kind, False


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_describe(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "a string"}[kind]


def _of_agents(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is given for single agents, by their names."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        agent = _AGENT_KEY.fullmatch(name)
        if agent is not None:
            found.setdefault(agent[1], {})[agent[2]] = value
    return found


def _build(cls: type[Any], given: Mapping[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(cls)
    values = {}
    for attribute in attrs.fields(cls):
        full = prefix + attribute.name
        if full == _AGENTS:
            values[full] = _of_agents(given)
        elif attrs.has(hints[attribute.name]):
            values[attribute.name] = _build(hints[attribute.name], given, f"{full}.")
        elif full in given:
            values[attribute.name] = given[full]
    return cls(**values)

"""Profiles: where a generated workspace runs, and which components it has.

A profile is a TOML file: those of `builtin/` by their names, anybody's own by its path. What it does not say is the
default; what is set on the command line wins over both.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, get_args

import attrs

from meshforge_trio.errors import Misconfigured

__all__ = ["PROFILES", "Broker", "Profile", "Toggles", "load_profile", "parse_toggle", "profile_of"]

Broker = Literal["private", "compose", "cluster"]
Security = Literal["strict", "signed"]

#: The names of the profiles that come with it, simplest first.
PROFILES: Final[Sequence[str]] = ("local", "test-nats", "cluster")

_TABLE: Final = "component_toggles"
_REPLICAS_MAX: Final = 5
_ON_OFF: Final[Mapping[str, bool]] = {"on": True, "true": True, "off": False, "false": False}


@attrs.frozen
class Toggles:
    """Which components a workspace has.

    `lock_manager` wires `LockManagerAdapter` and tests it. `security` is `strict` (who may send what is listed) or
    `signed` (commands are signed, too). Without `dead_letters` a failing command is tried again for as long as it
    takes instead of being set aside after five calls. `telemetry` logs JSON and tests the metrics.
    """

    lock_manager: bool = False
    security: Security = "strict"
    dead_letters: bool = True
    telemetry: bool = False


@attrs.frozen
class Profile:
    """Where a workspace runs. `replicas` are the copies of each stream; only a cluster has more than one."""

    name: str
    about: str
    broker: Broker
    replicas: int = 1
    toggles: Toggles = attrs.field(factory=Toggles)

    def to_toml(self) -> Mapping[str, Any]:
        """Its values as a TOML file has them, and its name; `profile_of` reads them back."""
        told = attrs.asdict(self, filter=lambda field, _: field.name != "toggles")
        return {**told, _TABLE: attrs.asdict(self.toggles)}


def profile_of(told: Mapping[str, Any]) -> Profile:
    """The profile of a manifest.

    Raises:
        Misconfigured: it says what no profile can.
    """
    return _profile(str(told.get("name", "")), {key: value for key, value in told.items() if key != "name"})


def load_profile(name: str) -> Profile:
    """The profile of that name, or of the TOML file at that path.

    Raises:
        Misconfigured: there is none, or it says what no profile can.
    """
    path = Path(name)
    try:
        if name in PROFILES:
            text = (resources.files(__package__) / "builtin" / f"{name}.toml").read_text()
        elif path.suffix == ".toml":
            text = path.read_text()
        else:
            near = difflib.get_close_matches(name, PROFILES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise Misconfigured(
                f"there is no profile {name!r:.80}{hint}: name one of {', '.join(PROFILES)}, or the path of a TOML file"
            )
        return _profile(path.stem if path.suffix == ".toml" else name, tomllib.loads(text))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"profile {name} cannot be read: {error}") from error


def _profile(name: str, told: Mapping[str, Any]) -> Profile:
    known = ("about", "broker", "replicas", _TABLE)
    _refuse_unknown(f"profile {name}", told, known)
    broker, replicas, about = told.get("broker", "private"), told.get("replicas", 1), told.get("about", "")
    toggles = told.get(_TABLE, {})
    if broker not in get_args(Broker):
        raise Misconfigured(
            f"profile {name}: broker is {broker!r:.80}; it must be one of {', '.join(get_args(Broker))}"
        )
    if type(replicas) is not int or not 1 <= replicas <= _REPLICAS_MAX:
        raise Misconfigured(f"profile {name}: replicas is {replicas!r:.80}; it must be between 1 and {_REPLICAS_MAX}")
    if replicas > 1 and broker != "cluster":
        raise Misconfigured(f'profile {name}: one server keeps one copy; replicas above 1 need broker = "cluster"')
    if not isinstance(about, str) or not isinstance(toggles, dict):
        raise Misconfigured(f"profile {name}: about must be a text, {_TABLE} a table")
    _refuse_unknown(f"profile {name}: {_TABLE}", toggles, [field.name for field in attrs.fields(Toggles)])
    made = Toggles(**{key: _toggle(key, value, f"profile {name}") for key, value in toggles.items()})
    return Profile(name, about, broker, replicas, made)


def _refuse_unknown(where: str, told: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in told:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise Misconfigured(f"{where} has no {key!r:.80}; the nearest is {near!r}. There are: {', '.join(known)}")


def parse_toggle(text: str) -> tuple[str, Any]:
    """`lock_manager=on` or `security=signed` as name and value.

    Raises:
        Misconfigured: there is no such toggle, or it cannot have that value.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise Misconfigured(f"--set {text!r:.80} is not NAME=VALUE, as lock_manager=on")
    _refuse_unknown("--set", {name: value}, [field.name for field in attrs.fields(Toggles)])
    return name, _toggle(name, _ON_OFF.get(value, value), "--set")


def _toggle(name: str, value: Any, where: str) -> Any:
    words = get_args(Security) if name == "security" else ("on", "off")
    if value in get_args(Security) if name == "security" else type(value) is bool:
        return value
    raise Misconfigured(f"{where}: {name} is {value!r:.80}; it must be {' or '.join(words)}")

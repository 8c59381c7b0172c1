"""Profiles and toggles: what they say, who wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from meshforge_trio.errors import Misconfigured
from meshforge_trio.factory.profiles import PROFILES, Profile, Toggles, load_profile, parse_toggle, profile_of


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_that_comes_with_it_loads(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.about
    assert profile_of(profile.to_toml()) == profile


def test_only_a_cluster_has_copies() -> None:
    assert {name: (load_profile(name).broker, load_profile(name).replicas) for name in PROFILES} == {
        "local": ("private", 1),
        "test-nats": ("compose", 1),
        "cluster": ("cluster", 3),
    }


def test_a_profile_of_ones_own_says_what_differs_from_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('about = "Mine."\n[component_toggles]\nlock_manager = true\n')
    assert load_profile(str(path)) == Profile("mine", "Mine.", "private", 1, Toggles(lock_manager=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('broker = "kafka"', "broker is 'kafka'; it must be one of private, compose, cluster"),
        ("replicas = 7", "replicas is 7; it must be between 1 and 5"),
        ('broker = "cluster"\nreplicas = true', "replicas is True"),
        ("replicas = 3", "one server keeps one copy"),
        ("about = 1", "about must be a text"),
        ("component_toggles = 1", "component_toggles a table"),
        ("brokers = 1", "has no 'brokers'; the nearest is 'broker'"),
        ("[component_toggles]\nlocks = true", "has no 'locks'; the nearest is 'lock_manager'"),
        ("[component_toggles]\ntelemetry = 1", "telemetry is 1; it must be on or off"),
        ('[component_toggles]\nsecurity = "none"', "security is 'none'; it must be strict or signed"),
        ("about =", "cannot be read"),
    ],
)
def test_what_no_profile_can_say_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=said.replace("(", r"\(")):
        load_profile(str(path))


def test_a_profile_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(Misconfigured, match=r"no profile 'locl' \(did you mean local\?\)"):
        load_profile("locl")
    with pytest.raises(Misconfigured, match=r"gone\.toml cannot be read"):
        load_profile("gone.toml")


@pytest.mark.parametrize(
    ("text", "toggle"),
    [
        ("lock_manager=on", ("lock_manager", True)),
        ("telemetry=false", ("telemetry", False)),
        ("security=signed", ("security", "signed")),
    ],
)
def test_a_toggle_on_the_command_line(text: str, toggle: tuple[str, Any]) -> None:
    assert parse_toggle(text) == toggle
    name, value = toggle
    assert getattr(attrs.evolve(Toggles(), **{name: value}), name) == value


@pytest.mark.parametrize("text", ["lock_manager", "locks=on", "security=on", "dead_letters=maybe", "=on"])
def test_a_toggle_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="--set"):
        parse_toggle(text)

"""Settings: where they come from, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshforge_trio.config import EngineSettings, Settings, load_settings
from meshforge_trio.errors import Misconfigured
from meshforge_trio.policy import RetryPolicy


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a file of settings."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "meshforge.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert load_settings(environ={}) == Settings()


def test_file_environment_and_flags_each_win_over_the_one_before() -> None:
    written('url = "nats://file:1"\nstore = "file.db"\nlog_level = "error"\n[engine]\nbatch = 7\n')
    environ = {"MESHFORGE_URL": "nats://env:1", "MESHFORGE_STORE": "env.db", "PATH": "/nowhere"}
    settings = load_settings(environ=environ, flags={"store": "flag.db", "url": None})
    assert settings == Settings(
        url="nats://env:1", store=Path("flag.db"), log_level="error", engine=EngineSettings(batch=7)
    )


def test_every_section_of_the_file_is_read() -> None:
    path = written(
        'workspaces = ["a/b", "c/d"]\nlog_json = true\ndrain_s = 3\n'
        "[engine]\nack_wait_s = 1.5\n[engine.retry]\nlimit = 3\ndelays_s = [1, 2.5]\nhold_entity = false\n",
        "other.toml",
    )
    settings = load_settings(path, environ={})
    assert settings.workspaces == ("a/b", "c/d")
    assert settings.log_json is True
    assert settings.drain_s == 3.0
    assert settings.engine.ack_wait_s == 1.5
    assert settings.engine.retry == RetryPolicy(limit=3, delays_s=(1.0, 2.5), hold_entity=False)


def test_the_environment_reaches_every_type() -> None:
    settings = load_settings(
        environ={
            "MESHFORGE_WORKSPACES": "a/b, c/d",
            "MESHFORGE_LOG_JSON": "Yes",
            "MESHFORGE_LEASE_TTL_S": "2",
            "MESHFORGE_NKEY_SEED_FILE": "seed.txt",
            "MESHFORGE_ENGINE__RETRY__DELAYS_S": "0.5,1",
            "MESHFORGE_ENGINE__RETRY__HOLD_ENTITY": "0",
            "MESHFORGE_ENGINE__CACHE_ENTITIES": "12",
        }
    )
    assert settings.workspaces == ("a/b", "c/d")
    assert settings.log_json is True
    assert settings.lease_ttl_s == 2.0
    assert settings.nkey_seed_file == Path("seed.txt")
    assert settings.engine.retry == RetryPolicy(delays_s=(0.5, 1.0), hold_entity=False)
    assert settings.engine.cache_entities == 12


def test_paths_in_a_file_are_relative_to_it() -> None:
    written('store = "events.db"', "etc/mesh.toml")
    assert load_settings(Path("etc/mesh.toml"), environ={}).store == Path("etc/events.db")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('ulr = "nats://x:1"', "unknown key 'ulr'; the nearest known one is 'url'"),
        ("[engine]\nbathc = 1", "unknown key 'engine.bathc'; the nearest known one is 'engine.batch'"),
        ("batch = 1", "unknown key 'batch'; the nearest known one is 'engine.batch'"),
        (
            "[engine.retry]\nlimits = 3",
            "unknown key 'engine.retry.limits'; the nearest known one is 'engine.retry.limi",
        ),
        ("[engin]\nbatch = 1", "unknown key 'engin'"),
        ("engine = 3", "engine is a section"),
        ('[engine]\nbatch = "many"', 'engine.batch is "many", it must be a whole number'),
        ("[engine]\nbatch = 1.5", "engine.batch is 1.5, it must be a whole number"),
        ("[engine]\nbatch = true", "engine.batch is true, it must be a whole number"),
        ("[engine]\nbatch = 0", "batch is 0, it must be between 1 and 65536"),
        ("[engine]\nack_wait_s = nan", "engine.ack_wait_s is NaN, it must be a number"),
        ("[engine]\nack_wait_s = inf", "ack_wait_s is inf, it must be between"),
        ("[engine.retry]\nlimit = 1", "limit is 1, it must be between 2 and 1000, or 0 for no limit"),
        ("[engine.retry]\nlimit = -1", "limit is -1, it must be between 2 and 1000"),
        ("[engine.retry]\nlimit = 1001", "limit is 1001, it must be between 2 and 1000"),
        ("[engine.retry]\ndelays_s = []", "delays_s is empty"),
        ("[engine.retry]\ndelays_s = [1, -1]", "delays_s is -1.0, it must be between"),
        ('[engine.retry]\ndelays_s = [1, "x"]', 'delays_s is [1, "x"], it must be a list, each a number'),
        ("log_json = 1", "log_json is 1, it must be true or false"),
        ('log_level = "loud"', 'log_level is "loud", it must be one of debug, info, warning, error, critical'),
        ("store = 3", "store is 3, it must be a path"),
        ('store = ""', "it must be a path"),
        ("url = 3", "url is of type int, it must be a string"),
        ("workspaces = []", "workspaces is empty"),
        ('workspaces = ["a/b", "a/b"]', "names one twice"),
        ('workspaces = ["a.b"]', "'a.b' is not <tenant>/<workspace>"),
        ('workspaces = ["a/b/c"]', "'a/b/c' is not <tenant>/<workspace>"),
        ('workspaces = "a/b"', "it must be a list, each a string"),
        ("url = [", "is not TOML"),
    ],
)
def test_a_wrong_file_is_told_by_file_and_key(text: str, told: str) -> None:
    written(text)
    with pytest.raises(Misconfigured) as caught:
        load_settings(environ={})
    assert str(caught.value).startswith(("meshforge.toml:", "config file meshforge.toml"))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("MESHFORGE_ENGINE__BATHC", "1", "the nearest known one is 'MESHFORGE_ENGINE__BATCH'"),
        ("MESHFORGE_BATCH", "1", "the nearest known one is 'MESHFORGE_ENGINE__BATCH'"),
        ("MESHFORGE_ENGINE", "1", "engine is a section"),
        ("MESHFORGE_ENGINE__BATCH", "x", "'x' is not a whole number"),
        ("MESHFORGE_ENGINE__BATCH", "-1", "batch is -1, it must be between"),
        ("MESHFORGE_LOG_JSON", "maybe", "'maybe' is not true or false"),
        ("MESHFORGE_ENGINE__RETRY__DELAYS_S", "1,x", "'1,x' is not a list, each a number"),
        ("MESHFORGE_DRAIN_S", "nan", "drain_s is NaN, it must be a number"),
        ("MESHFORGE_DRAIN_S", "", "'' is not a number"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(variable: str, text: str, told: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        load_settings(environ={variable: text})
    assert f"environment variable {variable}: " in str(caught.value)
    assert told in str(caught.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(Misconfigured, match=r"config file none\.toml: No such file"):
        load_settings(Path("none.toml"), environ={})


def test_a_wrong_flag_is_told() -> None:
    with pytest.raises(Misconfigured, match=r"command line: .*'ab' is not <tenant>/<workspace>"):
        load_settings(environ={}, flags={"workspaces": ("ab",)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: EngineSettings(batch=0),
        lambda: EngineSettings(retry=RetryPolicy(limit=1)),
        lambda: Settings(workspaces=("x",)),
        lambda: Settings(lease_ttl_s=0),
    ],
)
def test_ranges_hold_for_settings_made_by_a_program(make: Any) -> None:
    with pytest.raises(Misconfigured):
        make()


def test_secrets_do_not_show_in_a_printed_settings() -> None:
    shown = repr(Settings(url="nats://me:hunter2@host:1", password="hunter2", token="hunter2"))
    assert "hunter2" not in shown


def test_what_is_set_for_one_agent_wins_over_code_and_general_policy() -> None:
    written(
        "[engine.retry]\nlimit = 3\n[agents.order.retry]\ndelays_s = [2]\npoison = ['ValueError']\n"
        "[agents.big-one.retry]\nhold_entity = false\n"
    )
    settings = load_settings(environ={"MESHFORGE_AGENTS__ORDER__RETRY__JITTER": "0"})
    assert settings.retry_of("order") == RetryPolicy(limit=3, delays_s=(2.0,), poison=("ValueError",), jitter=0.0)
    own = RetryPolicy(limit=9, delays_s=(7.0,))
    assert settings.retry_of("order", own) == RetryPolicy(limit=9, delays_s=(2.0,), poison=("ValueError",), jitter=0.0)
    assert settings.retry_of("big-one").hold_entity is False
    assert settings.retry_of("other") == RetryPolicy(limit=3)
    assert settings.retry_of("other", own) is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agents.order.retry]\nlimit = 1\n", "limit is 1, it must be between 2 and 1000"),
        ("[agents.order.retry]\nlimits = 5\n", "unknown key 'agents.order.retry.limits'"),
        ("[agents.order]\nlimit = 5\n", "unknown key 'agents.order.limit'"),
        ("agents = 5\n", "agents is a section"),
        ("[agents]\norder = 5\n", "agents.order is a section"),
        ("[agents.'a b'.retry]\nlimit = 5\n", "unknown key"),
    ],
)
def test_a_wrong_key_of_an_agent_is_told(text: str, said: str) -> None:
    written(text)
    with pytest.raises(Misconfigured, match=said):
        load_settings(environ={})

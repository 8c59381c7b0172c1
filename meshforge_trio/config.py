"""Settings: every number that a person may want to change, with its default."""

from __future__ import annotations

from pathlib import Path

import attrs

from meshforge_trio.policy import RetryPolicy

__all__ = ["EngineSettings", "Settings"]


@attrs.frozen
class EngineSettings:
    """How one engine works. Times in seconds.

    `batch` is the most commands of one turn. `publish_burst` splits a turn's publishes into pieces (0: one piece);
    fault tests set 1 so that a kill can fall between any two.
    """

    ack_wait_s: float = 30.0
    max_ack_pending: int = 4096
    batch: int = 256
    duplicate_window_s: float = 120.0
    replicas: int = 1
    publish_timeout_s: float = 5.0
    publish_burst: int = 0
    cache_entities: int = 10_000
    idle_mark_s: float = 0.25
    standby_poll_s: float = 0.1
    retry: RetryPolicy = attrs.field(factory=RetryPolicy)


@attrs.frozen
class Settings:
    """How one process works. Times in seconds.

    `workspaces` are `tenant/workspace` pairs; every agent of the app serves each of them.
    `lease_ttl_s` is how long a holder that does not move keeps its scopes; a dead one loses them at once.
    """

    url: str = "nats://127.0.0.1:4222"
    store: Path = Path("meshforge.db")
    workspaces: tuple[str, ...] = ("default/demo",)
    user: str | None = None
    password: str | None = None
    token: str | None = None
    nkey_seed_file: Path | None = None
    credentials_file: Path | None = None
    lease_ttl_s: float = 5.0
    drain_s: float = 10.0
    log_level: str = "info"
    log_json: bool = False
    engine: EngineSettings = attrs.field(factory=EngineSettings)

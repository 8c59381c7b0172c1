"""Where tenants are served: each site is a store and a log-in at a broker, with the tenants that share both.

One process may serve several sites. What breaks one of them, its store or its account, leaves the others alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from meshforge_trio.config import TENANT_KEYS, Settings

__all__ = ["Site", "brokers", "sites", "stores"]


@attrs.frozen
class Site:
    """A store, a log-in at a broker, and who is served there. `settings` are those of its tenants.

    `alone` says that there is no other.
    """

    tenants: tuple[str, ...]
    settings: Settings
    alone: bool = True

    @property
    def name(self) -> str:
        """Its tenants, as logs and reports name it."""
        return ", ".join(self.tenants)

    @property
    def place(self) -> str:
        """Its store's file, whatever links lead to it. Two sites may share one: each scope has rows of its own."""
        return os.path.realpath(self.settings.store)

    def has(self, tenant: str) -> bool:
        """Whether a tenant's rows and messages belong here: also of one that nobody serves, where there is no other."""
        return self.alone or tenant in self.tenants


def sites(settings: Settings) -> Sequence[Site]:
    """The sites of all workspaces, in the order in which those name them; one, where nothing is set for a tenant."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for tenant in dict.fromkeys(workspace.partition("/")[0] for workspace in settings.workspaces):
        resolved = settings.of_tenant(tenant)
        shared = [getattr(resolved, name) for name in TENANT_KEYS if name != "store"]
        found.setdefault((os.path.realpath(resolved.store), *shared), []).append(tenant)
    return [_site(settings, tenants, alone=len(found) == 1) for tenants in found.values()]


def _site(settings: Settings, tenants: Sequence[str], *, alone: bool) -> Site:
    workspaces = tuple(each for each in settings.workspaces if each.partition("/")[0] in tenants)
    return Site(tuple(tenants), attrs.evolve(settings.of_tenant(tenants[0]), workspaces=workspaces), alone)


def stores(settings: Settings) -> Sequence[tuple[Path, Callable[[str], bool]]]:
    """Each store once, and which tenants' rows are looked for in it.

    One store is read whole, as it may hold workspaces that nobody serves any more. Of several, each tenant's rows are
    taken from the store of its settings alone: another may hold some from before it moved.
    """
    paths = {site.place: site.settings.store for site in sites(settings)}
    if len(paths) == 1:
        return [(path, lambda _: True) for path in paths.values()]

    def of(place: str) -> Callable[[str], bool]:
        return lambda tenant: os.path.realpath(settings.of_tenant(tenant).store) == place

    return [(path, of(place)) for place, path in paths.items()]


def brokers(settings: Settings) -> Sequence[Settings]:
    """The settings of one site for each log-in at a broker, wherever its store is."""
    unlike = ("store", "signing_seed_file")
    found: dict[tuple[Any, ...], Settings] = {}
    for site in sites(settings):
        key = tuple(getattr(site.settings, name) for name in TENANT_KEYS if name not in unlike)
        found.setdefault(key, site.settings)
    return list(found.values())

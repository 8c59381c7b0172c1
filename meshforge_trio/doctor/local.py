"""Rules that need no broker: settings, the store's place, the machine. `check_start` is part of every start."""

from __future__ import annotations

import os
import re
import resource
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from meshforge_trio.config import Settings
from meshforge_trio.doctor.rules import Finding, rule
from meshforge_trio.errors import Misconfigured
from meshforge_trio.policy import RetryPolicy

__all__ = ["Mount", "check_start", "examine_machine", "examine_settings", "examine_store", "mount_of"]

#: The share of `max_ack_pending` that may wait behind failing commands is one in so many.
_HELD_SHARE: Final = 4
#: A lease shorter than this share of the longest handler is lost by whoever blocks for a moment.
_LEASE_SHARE: Final = 0.1
_FILES_MIN: Final = 256
_GIB: Final = 1 << 30
_NETWORK: Final = re.compile(
    r"(nfs|nfs4|cifs|smb3?|smbfs|9p|afs|ceph|glusterfs|lustre|ncpfs|davfs2?|beegfs|gpfs|gfs2|ocfs2|orangefs|"
    r"fuse\.(sshfs|s3fs|glusterfs|ceph-fuse|ceph|rclone|davfs2|nfs|smbnetfs|gcsfuse|juicefs|cvmfs2?|moosefs|lustre))"
)
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOUNTS: Final = Path("/proc/self/mounts")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@attrs.frozen
class Mount:
    """A mounted file system: where, and of which type."""

    at: Path
    kind: str


def check_start(settings: Settings) -> None:
    """Refuse what breaks a guarantee and can be seen without a broker. Takes well under a millisecond.

    Raises:
        Misconfigured: a rule refuses; the message names it.
    """
    for finding in [*_ack_pending(settings), *_file_system(mount_of(settings.store), durable=False)]:
        if finding.severity == "refuse":
            raise Misconfigured(
                f"{finding.found}. {finding.do} (rule {finding.rule.id} of `meshforge doctor`: {finding.rule.why})"
            )


def examine_settings(settings: Settings, policies: Mapping[str, RetryPolicy]) -> Iterator[Finding]:
    """The settings by themselves. `policies` are the policies of retries by the names of their agents."""
    engine = settings.engine
    slowest = max(policies, key=lambda name: policies[name].handler_limit_s)
    limit_s = policies[slowest].handler_limit_s
    what = f"ack_wait_s is {engine.ack_wait_s:g}, handlers of {slowest} may take {limit_s:g} s"
    if engine.ack_wait_s < limit_s:
        yield Finding(rule("ack-wait"), "warn", what, "raise engine.ack_wait_s to handler_limit_s or above")
    else:
        yield Finding(rule("ack-wait"), "ok", what)
    needed = 2 * max(engine.publish_timeout_s, settings.lease_ttl_s)
    what = f"duplicate_window_s is {engine.duplicate_window_s:g}"
    if engine.duplicate_window_s < needed:
        do = f"raise it to {needed:g} or above: twice publish_timeout_s and twice lease_ttl_s must fit"
        yield Finding(rule("duplicate-window"), "warn", what, do)
    else:
        yield Finding(rule("duplicate-window"), "ok", what)
    yield from _ack_pending(settings)
    what = f"lease_ttl_s is {settings.lease_ttl_s:g}, handlers of {slowest} may take {limit_s:g} s"
    if settings.lease_ttl_s < limit_s * _LEASE_SHARE:
        do = f"raise lease_ttl_s to {limit_s * _LEASE_SHARE:g} or above, or lower handler_limit_s"
        yield Finding(rule("lease"), "warn", what, do)
    else:
        yield Finding(rule("lease"), "ok", what)
    few = sorted(name for name, policy in policies.items() if 0 < policy.limit < 3)
    if few:
        what = f"the retry limit is {min(policies[name].limit for name in few)} for {', '.join(few)}"
        yield Finding(rule("retry-limit"), "warn", what, "raise retry.limit to 3 or above")
    else:
        least = min((policy.limit for policy in policies.values() if policy.limit), default=0)
        yield Finding(rule("retry-limit"), "ok", f"the retry limit is {least}" if least else "there is no retry limit")


def _ack_pending(settings: Settings) -> Iterator[Finding]:
    engine, the = settings.engine, rule("ack-pending")
    what = f"max_ack_pending is {engine.max_ack_pending}, batch is {engine.batch}"
    if engine.max_ack_pending < _HELD_SHARE:
        yield Finding(the, "refuse", what, "raise engine.max_ack_pending to twice the batch, at least to 4")
    elif engine.max_ack_pending < engine.batch:
        yield Finding(the, "warn", what, "raise engine.max_ack_pending to twice the batch, or lower engine.batch")
    else:
        yield Finding(the, "ok", what)


def examine_store(path: Path, *, durable: bool) -> Iterator[Finding]:
    """The place of the store: file system, modes, free space. With `durable` it must survive a power loss."""
    yield from _file_system(mount_of(path), durable=durable)
    yield from _modes(path)
    place = _existing(path)
    usage = shutil.disk_usage(place)
    what = f"{usage.free >> 20} MiB ({usage.free / max(usage.total, 1):.0%}) are free on the disk of {path}"
    if usage.free < _GIB and usage.free < usage.total * 0.1:
        yield Finding(rule("disk-free"), "warn", what, "make room, or move the store")
    else:
        yield Finding(rule("disk-free"), "ok", what)


def _file_system(mount: Mount | None, *, durable: bool) -> Iterator[Finding]:
    network, memory = rule("store-file-system"), rule("store-memory")
    if mount is None:
        yield Finding(network, "unknown", "this system does not tell on which file system the store lies")
        return
    what = f"the store lies on {mount.kind}, mounted at {mount.at}"
    if _NETWORK.fullmatch(mount.kind):
        yield Finding(network, "refuse", what, "name a store on a local disk (`--store`)")
        return
    yield Finding(network, "ok", what)
    if mount.kind in _IN_MEMORY:
        do = "name a store on a disk (`--store`), unless this is a test"
        yield Finding(memory, "refuse" if durable else "warn", what, do)
    else:
        yield Finding(memory, "ok", what)


def _modes(path: Path) -> Iterator[Finding]:
    the = rule("store-mode")
    wide = []
    for place, most in ((path.absolute().parent, 0o700), (path, 0o600), (Path(f"{path}-wal"), 0o600)):
        try:
            mode = stat.S_IMODE(place.stat().st_mode)
        except OSError:
            continue
        # The directory alone protects what is in it, and the file alone protects itself.
        if mode & ~most & 0o777:
            wide.append((place, mode, most))
    files = [each for each in wide if each[0] != path.absolute().parent]
    if files:
        what = ", ".join(f"{place} has mode {mode:04o}" for place, mode, _ in wide)
        do = "; ".join(f"chmod {most:o} {place}" for place, _, most in wide)
        yield Finding(the, "warn", what, do)
    elif wide:
        place, mode, most = wide[0]
        what = f"{place} has mode {mode:04o}: others see that there is a store, not what is in it"
        yield Finding(the, "warn", what, f"chmod {most:o} {place}, or give the store a directory of its own")
    else:
        yield Finding(the, "ok", "nobody else may read the store")


def examine_machine() -> Iterator[Finding]:
    """Limits of the process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"{'any number of' if soft == resource.RLIM_INFINITY else soft} files may be open at a time"
    if soft != resource.RLIM_INFINITY and soft < _FILES_MIN:
        yield Finding(rule("open-files"), "warn", what, f"raise the limit to {_FILES_MIN} or above (`ulimit -n`)")
    else:
        yield Finding(rule("open-files"), "ok", what)


def mount_of(path: Path, mounts: str | None = None) -> Mount | None:
    """The file system that `path` lies on, or will; `None` where the system does not tell.

    `mounts` is a table like /proc/self/mounts, read from there unless given.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return None
    place = _existing(path).resolve()
    found: Mount | None = None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        at = Path(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields[1]))
        # Of two at one place the later one hides the other.
        if place.is_relative_to(at) and (found is None or len(at.parts) >= len(found.at.parts)):
            found = Mount(at, fields[2])
    return found


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    place = Path(os.path.abspath(path))  # noqa: PTH100  (symbolic links are followed once it exists)
    while not place.exists():
        place = place.parent
    return place

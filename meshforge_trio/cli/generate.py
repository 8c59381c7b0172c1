"""`meshforge generate`: from a PRD to a workspace that runs, and again when the PRD has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from meshforge_trio.cli.options import print_json
from meshforge_trio.errors import Misconfigured
from meshforge_trio.factory.generate import RuntimeGenerator
from meshforge_trio.factory.naming import custom_rules
from meshforge_trio.factory.prd import load_prd
from meshforge_trio.factory.problems import PrdError
from meshforge_trio.factory.profiles import PROFILES, Profile, load_profile, parse_toggle, profile_of
from meshforge_trio.factory.workspace import Change, Update, read_manifest, write_update
from meshforge_trio.policy import ExitCode

__all__ = ["generate"]

_DEFAULT = PROFILES[0]


def _list_profiles(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        for name in PROFILES:
            profile = load_profile(name)
            click.echo(f"{name:10} {profile.about}")
            click.echo(f"{'':10} {_told_toggles(profile)}")
        ctx.exit()


def _told_toggles(profile: Profile) -> str:
    told = {True: "on", False: "off"}
    return ", ".join(f"{name}={told.get(value, value)}" for name, value in attrs.asdict(profile.toggles).items())


@click.command(short_help="Make a workspace of agents from a PRD.")
@click.option(
    "--prd",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="What to make it from.",
)
@click.option(
    "--profile",
    metavar="NAME",
    help="Where it runs: a name, or the path of a TOML file. As before, or local, unless given.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to write it.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A component, as lock_manager=on.")
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if anything would change.")
@click.option("--keep", multiple=True, metavar="FILE", help="Yours is right: its conflict is settled.")
@click.option("--json", "as_json", is_flag=True, help="Say what became of each file for machines.")
@click.option(
    "--list-profiles",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_profiles,
    help="Show the profiles.",
)
def generate(
    prd: Path,
    profile: str | None,
    output: Path,
    settings: tuple[str, ...],
    check: bool,
    keep: tuple[str, ...],
    as_json: bool,
) -> int:
    """Write a workspace into DIR: agents, settings, tests, crash tests, Docker files, a workflow for CI.

    Run again after the PRD has changed, it replaces the files that nobody edited and leaves the others. Where a file
    was changed by hand and by the PRD, it shows what the PRD asks for, and writes nothing at all: make the change by
    hand, then run it again with --keep FILE.
    """
    try:
        read, text = load_prd(prd), prd.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Misconfigured(f"PRD {prd} cannot be read: {error.strerror}") from error
    except PrdError as error:
        raise Misconfigured(f"nothing was written, the PRD has to be mended first:\n{error}") from error
    chosen = _profile(output, profile, settings)
    generator = RuntimeGenerator(read, chosen, text.replace("\r\n", "\n"))
    update = generator.plan(output, keep)
    if not check and not update.conflicts:
        write_update(update)
    if as_json:
        print_json(_document(update, chosen, written=not check and not update.conflicts))
    else:
        _show(update, check=check)
        left = [(agent.name, name) for agent in read.agents for _, _, name in custom_rules(agent)]
        if left and not check and not update.conflicts:
            click.echo("Rules in words, yours to write: " + ", ".join(f"rules/{a}.py {name}" for a, name in left))
    if update.conflicts or (check and update.writes):
        return ExitCode.FAILED
    return ExitCode.OK


def _profile(output: Path, name: str | None, settings: Sequence[str]) -> Profile:
    """Flags over the profile; of a workspace that is there, what is not said anew stays as it was."""
    manifest = read_manifest(output) if name is None else None
    chosen = load_profile(name or _DEFAULT) if manifest is None else profile_of(manifest.profile)
    return attrs.evolve(chosen, toggles=attrs.evolve(chosen.toggles, **dict(map(parse_toggle, settings))))


def _show(update: Update, *, check: bool) -> None:
    """What became of each file, or would; conflicts last, as diffs."""
    for change in update.changes:
        if change.kind not in ("unchanged", "conflict"):
            click.echo(f"{change.kind:9} {change.path}" + (f"  ({change.why})" if change.why else ""))
        if check and change.kind in ("updated", "removed"):
            click.echo(change.diff, nl=False)
    for change in update.conflicts:
        click.echo(f"conflict  {change.path}  ({change.why})")
        click.echo(change.diff, nl=False)
    if update.conflicts:
        paths = " ".join(f"--keep {change.path}" for change in update.conflicts)
        click.echo(f"Nothing was written. Make these changes by hand, then say so: {paths}", err=True)
    elif check and update.writes:
        click.echo("The workspace is not what the PRD says: run it again without --check.", err=True)
    elif not update.writes:
        click.echo("Nothing to do: the workspace is what the PRD says.")
    elif not check:
        click.echo(f"{update.directory} is ready: its README.md has the two commands that come next.")


def _document(update: Update, profile: Profile, *, written: bool) -> dict[str, Any]:
    return {
        "directory": str(update.directory),
        "profile": profile.name,
        "component_toggles": attrs.asdict(profile.toggles),
        "written": written,
        "files": [_file(change) for change in update.changes],
    }


def _file(change: Change) -> dict[str, str]:
    return {"path": change.path, "change": change.kind, "why": change.why, "diff": change.diff}

"""The process in which a run is recorded: `python -m chaos.power.record ORDER`, the path of a JSON file.

    {"run": what `Case.as_run` says, "home": a directory, "path": where the app is looked for, "patch": null or a patch,
     "parent": the process with which this one ends}

A planted bug is laid over the source before it is imported. The tape is written to `tape.jsonl` in `home`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from chaos.forkserver import die_with_parent
from chaos.mutants.patch import assert_applied, install, patch_from_json

__all__ = ["main"]


def main() -> int:
    """Record; return 0. What goes wrong is raised, and so told on standard error."""
    order = json.loads(Path(sys.argv[1]).read_bytes())
    die_with_parent(order["parent"])
    patch = None if order["patch"] is None else patch_from_json(order["patch"])
    if patch is not None:
        install(patch)
    sys.path.insert(0, order["path"])
    os.chdir(order["path"])
    # Late, so that a planted bug is in place before what it is planted in.
    from chaos.power.session import record  # noqa: PLC0415

    if patch is not None:
        assert_applied(patch)
    record(order)
    return 0


if __name__ == "__main__":
    sys.exit(main())

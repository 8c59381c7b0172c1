"""The process in which a tape is judged: `python -m chaos.power.judging ORDER`, the path of a JSON file.

    {"tape": a file, "scratch": a directory, "path": where the app is looked for, "until": a guarantee or "",
     "parent": the process with which this one ends}

What is judged with is the code as it is, whatever bug was planted in what was recorded. Progress goes to standard
output, a JSON line now and then; the result to `result.json` in `scratch`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson

from chaos.forkserver import die_with_parent
from chaos.power.judge import judge_tape
from chaos.power.tape import load_tape
from meshforge_trio.telemetry import set_up_logging

__all__ = ["RESULT", "main"]

#: The file that the result is written to.
RESULT = "result.json"


def main() -> int:
    """Judge; return 0 whatever came of it. What goes wrong is raised, and so told on standard error."""
    order = orjson.loads(Path(sys.argv[1]).read_bytes())
    die_with_parent(order["parent"])
    set_up_logging("error")
    sys.path.insert(0, order["path"])
    os.chdir(order["path"])
    scratch = Path(order["scratch"])
    images = scratch / "images"
    images.mkdir()
    result = judge_tape(load_tape(Path(order["tape"])), images, until=order["until"], told=_tell)
    (scratch / RESULT).write_bytes(orjson.dumps(result.to_json()))
    return 0


def _tell(at: int, steps: int, images: int) -> None:
    os.write(1, orjson.dumps([at, steps, images], option=orjson.OPT_APPEND_NEWLINE))


if __name__ == "__main__":
    sys.exit(main())

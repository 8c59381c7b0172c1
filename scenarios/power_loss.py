"""Power loss: python scenarios/power_loss.py

A run is recorded: every write, truncation, deletion and sync of the store's files, and what the outside was told in
between. Then the power goes after each of these steps, thousands of times: of what was written since the last sync all
is there, or nothing, a part, all but one write, one alone, or sectors of a write and not its others.

What must hold, in every image: it opens and is whole; whatever was ACKed is decided, since the broker has removed it;
whatever was published is stored, and its command will not be decided a second time.

`meshforge-chaos mutants synchronous-normal checkpoint-unsynced` shows that a store that syncs less is caught.
"""

from __future__ import annotations

import sys
from pathlib import Path

from chaos.cli import ending
from chaos.cli.power import power

if __name__ == "__main__":
    sys.exit(ending(power, Path(sys.argv[0]).name))

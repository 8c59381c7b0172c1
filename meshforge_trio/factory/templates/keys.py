#!/usr/bin/env python3
"""Make the keys of this workspace, once: python keys.py

    .keys/{{ tenant }}-{runtime,client,operator}.nk    seeds, one for each user, for their owner alone
{% if cluster %}
    .keys/nats-1.conf ...                 the three servers, with the account of the tenant: public keys only
{% endif %}
    .env                                  whose signatures count: public keys, for `docker compose` and your shell

None of it belongs under version control. Run again it keeps the keys; remove `.keys` to have new ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

{% if cluster %}
from meshforge_trio.nats_config import Node, ServerPlan, seed_file, write
{% else %}
from meshforge_trio.nats_config import ServerPlan, seed_file, write
{% endif %}
from meshforge_trio.signing import Signer

ROOT: Final = Path(__file__).parent
TENANT: Final = {{ tenant | python }}
{% if cluster %}
#: As in docker-compose.jetstream.yml: clients at 4222, other servers at 6222.
NODES: Final = tuple(Node(name, "0.0.0.0:4222", f"{name}:6222") for name in ("nats-1", "nats-2", "nats-3"))
{% endif %}


def make(directory: Path, plan: ServerPlan) -> str:
    """Make the keys of `plan` in `directory`, and return the line that says whose signatures count."""
    write(directory, plan)
    client, runtime, operator = (
        Signer.from_file(seed_file(directory, TENANT, role)).public_key for role in ("client", "runtime", "operator")
    )
    return f"{TENANT} user:* {client},{TENANT} *:* {runtime},{TENANT} system:* {operator}"


if __name__ == "__main__":
{% if cluster %}
    keys = make(
        ROOT / ".keys",
        ServerPlan([TENANT], nodes=NODES, store_dir=Path("/data"), cluster={{ slug | python }}, monitor="127.0.0.1:8222"),
    )
{% else %}
    keys = make(ROOT / ".keys", ServerPlan([TENANT]))
{% endif %}
    (ROOT / ".env").write_text(f'MESHFORGE_SIGNING_KEYS="{keys}"\n')
    print("The keys are in .keys, what is public of them in .env.")

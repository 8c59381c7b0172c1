"""Subjects, streams and consumer names: built and parsed here and nowhere else.

A token is `[A-Za-z0-9_-]{1,64}`. Anything else is refused on both sides, because the server itself accepts
wildcards, NUL and 3,000-character subjects on publish.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import attrs

from meshforge_trio.errors import Poison

__all__ = [
    "COMMANDS",
    "DELIVER",
    "DISCARD",
    "EVENTS",
    "FAILED",
    "REDRIVE",
    "RESERVED_EVENTS",
    "SYSTEM_PREFIX",
    "Address",
    "Scope",
    "check_token",
    "command_filter",
    "command_subject",
    "consumer_name",
    "event_filter",
    "event_subject",
    "failed_subject",
    "is_token",
    "parse_subject",
    "violation_subject",
]

COMMANDS: Final = "MESHFORGE_COMMANDS"
EVENTS: Final = "MESHFORGE_EVENTS"
FAILED: Final = "MESHFORGE_FAILED"

#: Event names the runtime itself publishes; an agent may not use them.
RESERVED_EVENTS: Final = frozenset(
    {"accepted", "conflict", "dead_lettered", "discarded", "redriven", "refused", "violation"}
)
#: Actions that begin so are the runtime's own, in every agent.
SYSTEM_PREFIX: Final = "sys_"
REDRIVE: Final = "sys_redrive"
DISCARD: Final = "sys_discard"
DELIVER: Final = "sys_deliver"

# The one table of agents whose subject token is not their name.
_TOKEN_OF_AGENT: Final = {"sys_lock_manager": "lock"}
_AGENT_OF_TOKEN: Final = {token: agent for agent, token in _TOKEN_OF_AGENT.items()}
# `security` carries violations, so no agent may be called that; `lock` belongs to the lock manager.
_RESERVED_AGENTS: Final = frozenset({"security", *_AGENT_OF_TOKEN})

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# What the server stores under a subject and no client may send: a dead letter must still find its way.
_UNSENDABLE: Final = re.compile(r"[^\x21-\x7e]")
_ORIGINAL_LENGTH_MAX: Final = 512


def is_token(text: object) -> bool:
    """Whether `text` may stand between two dots of a subject."""
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def check_token(text: object, field: str) -> str:
    """Return `text` if it is a token.

    Raises:
        Poison: naming `field`, with code `bad_token`.
    """
    if isinstance(text, str) and _TOKEN.fullmatch(text):
        return text
    raise Poison(
        f"{field} {text!r:.100} is not a subject token: 1 to 64 of A-Z a-z 0-9 _ -",
        code="bad_token",
        field=field,
    )


@attrs.frozen(order=True)
class Scope:
    """What one active engine serves: an agent in a workspace of a tenant."""

    tenant: str
    workspace: str
    agent: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.workspace}/{self.agent}"

    @staticmethod
    def checked(tenant: str, workspace: str, agent: str) -> Scope:
        """A scope whose parts are tokens and whose agent's name is free.

        Raises:
            Poison: a part is no token, or the agent's name is reserved.
        """
        check_token(tenant, "tenant")
        check_token(workspace, "workspace")
        check_token(agent, "agent")
        if agent in _RESERVED_AGENTS:
            raise Poison(f"agent name {agent!r} is reserved", code="reserved_agent", field="agent")
        return Scope(tenant, workspace, agent)


@attrs.frozen
class Address:
    """A parsed subject. `kind` is `cmd` or `evt`; `verb` is the action or the event's name."""

    kind: str
    scope: Scope
    verb: str


def _token(agent: str) -> str:
    return _TOKEN_OF_AGENT.get(agent, agent)


def command_subject(scope: Scope, action: str) -> str:
    """`cmd.<tenant>.<workspace>.<agent>.<action>`"""
    return f"cmd.{scope.tenant}.{scope.workspace}.{_token(scope.agent)}.{action}"


def event_subject(scope: Scope, name: str) -> str:
    """`evt.<tenant>.<workspace>.<agent>.<name>`"""
    return f"evt.{scope.tenant}.{scope.workspace}.{_token(scope.agent)}.{name}"


def violation_subject(tenant: str, workspace: str) -> str:
    """`evt.<tenant>.<workspace>.security.violation`"""
    return f"evt.{tenant}.{workspace}.security.violation"


def failed_subject(original: str) -> str:
    """`failed.<original subject>`

    One that could not be sent is made so: `_` for spaces, control and non-ASCII characters, and no more than 512.
    """
    return f"failed.{_UNSENDABLE.sub('_', original)[:_ORIGINAL_LENGTH_MAX].rstrip('.')}"


def command_filter(scope: Scope) -> str:
    """What the command consumer of a scope takes."""
    return command_subject(scope, ">")


def event_filter(scope: Scope) -> str:
    """Every event of a scope."""
    return event_subject(scope, ">")


def consumer_name(scope: Scope) -> str:
    """Durable name of a scope's consumer; the lengths make it impossible for two scopes to collide."""
    t, w = scope.tenant, scope.workspace
    return f"{len(t)}_{len(w)}_{t}_{w}_{scope.agent}_consumer"


@lru_cache(maxsize=4096)
def parse_subject(subject: str) -> Address:
    """Read a command or event subject.

    Raises:
        Poison: it is neither, or a part of it is no token.
    """
    parts = subject.split(".")
    if len(parts) != 5 or parts[0] not in ("cmd", "evt"):
        raise Poison(
            f"subject {subject!r:.200} is not cmd|evt.<tenant>.<workspace>.<agent>.<verb>",
            code="bad_subject",
            field="subject",
        )
    kind, tenant, workspace, token, verb = parts
    for field, text in (("tenant", tenant), ("workspace", workspace), ("agent", token), ("verb", verb)):
        check_token(text, f"subject {field}")
    return Address(kind, Scope(tenant, workspace, _AGENT_OF_TOKEN.get(token, token)), verb)

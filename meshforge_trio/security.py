"""Who may say what to whom: checked before anything else is looked at, and first in every decision.

A message that fails here is a violation: stored and published in the scope where it arrived, never echoing the payload.
"""

from __future__ import annotations

from typing import Final

import attrs

from meshforge_trio.broker.port import Delivery
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, SecurityContext
from meshforge_trio.permissions import EVERYBODY, Permissions
from meshforge_trio.signing import KeyRegistry
from meshforge_trio.subjects import DELIVER, SYSTEM_PREFIX, Address, Scope

__all__ = ["OPEN", "Access", "Violation", "as_agent", "check"]

_PRINCIPAL_LENGTH_MAX: Final = 256


@attrs.frozen
class Violation:
    """Why a message was not let in. `code` is for machines."""

    code: str
    reason: str
    principal_id: str | None


@attrs.frozen
class Access:
    """Who is let in: what principals may do, and the keys by which commands prove theirs."""

    permissions: Permissions = EVERYBODY
    keys: KeyRegistry = attrs.field(factory=lambda: KeyRegistry(()))

    def prove(self, delivery: Delivery, command: CommandEnvelope) -> Violation | None:
        """Why a command that passed `check` is not its principal's; `None` if it is, or nothing has to be signed."""
        context = command.security_context
        if not self.keys or context is None:
            return None
        found = self.keys.objection(delivery.subject, delivery.headers, delivery.body, command.tenant, context)
        return None if found is None else Violation(*found, _name(context))


OPEN: Final = Access()


def check(
    address: Address, envelope: CommandEnvelope | EventEnvelope, permissions: Permissions = EVERYBODY
) -> Violation | None:
    """Compare what the subject says with what the envelope says, require a principal, and one that may do this."""
    context = envelope.security_context
    claimed = Scope(envelope.tenant, envelope.workspace, envelope.agent)
    if claimed != address.scope:
        return Violation("scope_mismatch", f"envelope names {claimed}, subject names {address.scope}", _name(context))
    verb = envelope.action if isinstance(envelope, CommandEnvelope) else envelope.name
    if verb != address.verb:
        return Violation("subject_mismatch", f"envelope says {verb!r}, subject says {address.verb!r}", _name(context))
    if context is None:
        return Violation("missing_security_context", "security_context is missing", None)
    if not 1 <= len(context.principal_id) <= _PRINCIPAL_LENGTH_MAX:
        return Violation("bad_principal", "principal_id must be 1 to 256 characters", None)
    if context.on_behalf_of is not None and not 1 <= len(context.on_behalf_of) <= _PRINCIPAL_LENGTH_MAX:
        return Violation("bad_principal", "on_behalf_of must be 1 to 256 characters", _name(context))
    if not isinstance(envelope, CommandEnvelope):
        return None
    if envelope.action.startswith(SYSTEM_PREFIX):
        return _check_system(envelope.action, claimed, context)
    if not permissions.allow(context, claimed.agent, verb):
        who = f"{context.principal_type}:{context.principal_id}"
        return Violation("forbidden", f"{who} may not send {claimed.agent}.{verb}", _name(context))
    return None


def _check_system(action: str, scope: Scope, context: SecurityContext) -> Violation | None:
    """Actions of the runtime: what an agent sends to itself, and what the system asks for."""
    if action == DELIVER:
        allowed = (context.principal_type, context.principal_id) == ("agent", scope.agent)
    else:
        allowed = context.principal_type == "system"
    if allowed:
        return None
    return Violation("not_system", f"{action!r} is for the system alone", _name(context))


def _name(context: SecurityContext | None) -> str | None:
    """Who it claims to be, no longer than an answer may carry."""
    return None if context is None else context.principal_id[:_PRINCIPAL_LENGTH_MAX]


def as_agent(agent: str, cause: SecurityContext | None) -> SecurityContext:
    """The principal of what an agent sends: the agent, on behalf of whoever began the chain."""
    origin = None if cause is None else cause.on_behalf_of or cause.principal_id
    # The cause may be a violation that claims a principal of any length.
    return SecurityContext(agent, "agent", origin and origin[:_PRINCIPAL_LENGTH_MAX])

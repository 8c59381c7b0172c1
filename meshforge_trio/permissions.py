"""Who may send what to whom: rules of one line each, the first that fits decides.

    allow user:* -> order.*
    allow agent:order -> inventory.reserve
    deny  service:batch-* -> *.delete
    allow service:* -> *

A rule names the type and id of a principal and the agent and action of a command; `*` stands for any number of
characters, also within a name. Without rules everybody may everything that is no action of the runtime's; with rules
what none of them allows is forbidden.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, get_args

import attrs

from meshforge_trio.envelope import PrincipalType, SecurityContext
from meshforge_trio.errors import Misconfigured
from meshforge_trio.masking import masked

__all__ = ["EVERYBODY", "Permissions", "Rule", "id_fits", "parse_rule"]

_RULE: Final = re.compile(
    r"(?P<verdict>allow|deny)\s+(?P<kind>[a-z*]+):(?P<who>\S+)\s*->\s*(?P<agent>[A-Za-z0-9_*-]+)"
    r"(\.(?P<action>[A-Za-z0-9_*-]+))?"
)
_SHAPE: Final = "allow|deny TYPE:ID -> AGENT.ACTION"


@attrs.frozen
class Rule:
    """One line. Every part may hold `*`."""

    allows: bool
    kind: str
    who: str
    agent: str
    action: str

    def fits(self, kind: str, who: str, agent: str, action: str) -> bool:
        """Whether it speaks of this."""
        return (
            self.kind in ("*", kind)
            and id_fits(self.who, who)
            and fnmatchcase(agent, self.agent)
            and fnmatchcase(action, self.action)
        )


def id_fits(pattern: str, principal_id: str) -> bool:
    """Whether a pattern means a principal's id. Of fnmatch's special characters only `*` is one: ids hold others."""
    return fnmatchcase(principal_id, re.sub(r"[\[?]", r"[\g<0>]", pattern))


def parse_rule(text: str) -> Rule:
    """Read a rule.

    Raises:
        Misconfigured: it is none; says how one looks.
    """
    found = _RULE.fullmatch(text.strip())
    if found is None:
        raise Misconfigured(f"rule {masked(text)!r:.200} is not `{_SHAPE}`, as `allow user:* -> order.create`")
    kinds = get_args(PrincipalType)
    if found["kind"] != "*" and found["kind"] not in kinds:
        known = ", ".join((*kinds, "*"))
        raise Misconfigured(
            f"rule {masked(text)!r:.200}: {found['kind']!r} is no type of principal; there are: {known}"
        )
    return Rule(found["verdict"] == "allow", found["kind"], found["who"], found["agent"], found["action"] or "*")


class Permissions:
    """A list of rules. The answer to each question is remembered: there are few principals and fewer actions."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._asked = lru_cache(maxsize=4096)(self._ask)

    @staticmethod
    def of(texts: Sequence[str]) -> Permissions:
        """Rules as they stand in the settings. Raises `Misconfigured`."""
        return Permissions([parse_rule(text) for text in texts])

    def allow(self, context: SecurityContext, agent: str, action: str) -> bool:
        """Whether this principal may send this action to this agent."""
        return not self._rules or self._asked(context.principal_type, context.principal_id, agent, action)

    def _ask(self, kind: str, who: str, agent: str, action: str) -> bool:
        for rule in self._rules:
            if rule.fits(kind, who, agent, action):
                return rule.allows
        return False


EVERYBODY: Final = Permissions(())

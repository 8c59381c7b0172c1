"""Which commands each record of a history concerns: its own, and those it follows from through other agents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import orjson

from chaos.evidence import Evidence, envelope_of
from chaos.history import Record
from chaos.report.run import Command, Name
from chaos.report.turns import Turn, called
from meshforge_trio.errors import Poison
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, parse_subject

__all__ = ["NOTHING", "Concern", "concerns"]

#: A message id with its tenant and workspace; one id may be used in several.
_Node = tuple[str, str]
_STREAM_OF: Final = {"cmd": COMMANDS, "evt": EVENTS, "failed": FAILED}


@attrs.frozen
class Concern:
    """The commands of clients that a record is about, and those it only goes back to."""

    own: frozenset[Name] = frozenset()
    derived: frozenset[Name] = frozenset()

    @property
    def all(self) -> frozenset[Name]:
        """Both."""
        return self.own | self.derived


NOTHING: Final = Concern()


def concerns(
    history: Sequence[Record], sent: Sequence[Command], turns: Sequence[Turn], images: Sequence[Evidence] = ()
) -> Sequence[Concern]:
    """What each record concerns, in the order of `history`."""
    web = _Web(history, sent, images)
    found = [web.of(index, record) for index, record in enumerate(history)]
    for turn in turns:
        joined = _joined(web.named(name) for name in turn.names)
        for index in turn.records:
            if history[index].kind in ("point", "fault"):
                found[index] = joined
    return found


def _joined(parts: Iterator[Concern]) -> Concern:
    own: set[Name] = set()
    derived: set[Name] = set()
    for part in parts:
        own |= part.own
        derived |= part.derived
    return Concern(frozenset(own), frozenset(derived - own)) if own or derived else NOTHING


class _Web:
    """What is known of ids, keys, Msg-Ids and sequences, from everything that names two of them together."""

    def __init__(self, history: Sequence[Record], sent: Sequence[Command], images: Sequence[Evidence]) -> None:
        self._commands: dict[_Node, set[Name]] = defaultdict(set)
        self._causes: dict[_Node, set[_Node]] = defaultdict(set)
        self._keyed: dict[_Node, Name] = {}
        self._nodes: dict[Name, _Node] = {}
        self._msg_ids: dict[str, _Node] = {}
        self._seqs: dict[tuple[str, str], _Node] = {}
        self._resolved: dict[_Node, frozenset[Name]] = {}
        self._answered: dict[int, Name] = {}
        for command in sent:
            self._commands[_place(command.at), command.id].add(command.name)
        self._learn_sends(history)
        self._names = frozenset(name for names in self._commands.values() for name in names)
        self._called = called(history)
        for index, record in enumerate(history):
            if record.kind == "call":
                self._nodes[self._called[index]] = _place(str(record["scope"])), str(record["id"])
            self._learn(record)
        for image in images:
            self._learn_image(image)

    def _learn_sends(self, history: Sequence[Record]) -> None:
        """Sends and their answers. An id may be sent twice, or in two scopes: answers come in the order of sends."""
        waiting: dict[str, list[tuple[_Node, Name]]] = defaultdict(list)
        for index, record in enumerate(history):
            if record.kind == "send":
                scope, key = _scope_of(str(record["subject"])), str(record["key"] or "")
                node = _place(scope), str(record["id"])
                name = scope, key or f"id:{node[1]}"
                self._commands[node].add(name)
                self._answered[index] = name
                waiting[node[1]].append((node, name))
            elif record.kind in ("ok", "unknown", "failed") and waiting[str(record["id"])]:
                asked, self._answered[index] = waiting[str(record["id"])].pop(0)
                if record.kind == "ok":
                    self._seqs[COMMANDS, str(record["seq"])] = asked

    def _learn(self, record: Record) -> None:
        if record.kind == "heard":
            self._learn_message(_json(record.fields.get("body")), str(record["msg_id"] or ""))
        elif record.kind == "frame":
            subject, message = str(record.fields.get("subject") or ""), record.fields.get("id")
            if message and subject.partition(".")[0] in _STREAM_OF:
                node = _place(_scope_of(subject)), str(message)
                self._know(record.fields.get("msg_id"), node)
                if record.fields.get("seq"):
                    self._seqs.setdefault((_STREAM_OF[subject.partition(".")[0]], str(record["seq"])), node)

    def _know(self, msg_id: object, node: _Node) -> None:
        if msg_id:
            self._msg_ids.setdefault(str(msg_id), node)

    def _learn_image(self, image: Evidence) -> None:
        for row in image.rows.outputs:
            node = f"{row.scope.tenant}/{row.scope.workspace}", row.event_id
            self._keyed[node] = str(row.scope), row.key
            self._msg_ids[row.msg_id] = node
            cause = envelope_of(row).get("causation_id")
            if isinstance(cause, str):
                self._causes[node].add((node[0], cause))
        for message in image.events:
            learnt = self._learn_message(envelope_of(message), message.msg_id)
            if learnt is not None:
                self._seqs[EVENTS, str(message.seq)] = learnt

    def _learn_message(self, envelope: Mapping[str, Any], msg_id: str) -> _Node | None:
        tenant, workspace, agent, own = (envelope.get(field) for field in ("tenant", "workspace", "agent", "id"))
        if not (isinstance(tenant, str) and isinstance(workspace, str) and isinstance(own, str)):
            return None
        node = f"{tenant}/{workspace}", own
        self._know(msg_id, node)
        key, cause = envelope.get("idempotency_key"), envelope.get("causation_id")
        if isinstance(key, str) and isinstance(agent, str):
            self._keyed.setdefault(node, (f"{node[0]}/{agent}", key))
        if isinstance(cause, str):
            self._causes[node].add((node[0], cause))
        return node

    def of(self, index: int, record: Record) -> Concern:
        """What a record concerns, its turn aside."""
        if record.kind in ("send", "ok", "unknown", "failed"):
            return Concern(own=frozenset([self._answered[index]])) if index in self._answered else NOTHING
        if record.kind in ("call", "decided"):
            return self.named(self._called[index]) if index in self._called else NOTHING
        if record.kind == "heard":
            node = self._node_of(_json(record.fields.get("body"))) or self._msg_ids.get(str(record["msg_id"]))
            return NOTHING if node is None else self._at(node)
        if record.kind == "frame":
            node = self._framed(record.fields)
            return NOTHING if node is None else self._at(node)
        return NOTHING

    def named(self, name: Name) -> Concern:
        """What a key of a scope stands for: a client's command, or one that goes back to some."""
        if name in self._names:
            return Concern(own=frozenset([name]))
        node = self._nodes.get(name)
        if node is None:
            return NOTHING
        own = frozenset(known for known in self._commands.get(node, ()) if known[0] == name[0])
        if own:
            # A command that cannot be known by its own key has one of the runtime's.
            return Concern(own=own)
        return Concern(derived=self._resolve(node))

    def _at(self, node: _Node) -> Concern:
        if node in self._commands:
            return Concern(own=frozenset(self._commands[node]))
        keyed = self._keyed.get(node)
        if keyed in self._names and keyed is not None:
            return Concern(own=frozenset([keyed]))
        direct: set[Name] = set()
        for cause in self._causes.get(node, ()):
            direct |= {name for name in self._commands.get(cause, ()) if keyed is None or keyed[0] == name[0]}
        found = self._resolve(node)
        return Concern(frozenset(direct), found - direct)

    def _node_of(self, envelope: Mapping[str, Any]) -> _Node | None:
        tenant, workspace, own = (envelope.get(field) for field in ("tenant", "workspace", "id"))
        return (f"{tenant}/{workspace}", own) if isinstance(own, str) else None

    def _framed(self, fields: Mapping[str, Any]) -> _Node | None:
        subject = str(fields.get("subject") or "")
        message = fields.get("id")
        if message and subject.partition(".")[0] in _STREAM_OF:
            return _place(_scope_of(subject)), str(message)
        known = self._msg_ids.get(str(fields.get("msg_id") or ""))
        if known is not None:
            return known
        stream = next((stream for stream in _STREAM_OF.values() if stream in subject.split(".")), None)
        return None if stream is None else self._seqs.get((stream, str(fields.get("seq"))))

    def _resolve(self, node: _Node) -> frozenset[Name]:
        """The commands at the beginning of the chain of causes."""
        known = self._resolved.get(node)
        if known is not None:
            return known
        found: set[Name] = set()
        seen, open_nodes = {node}, [node]
        while open_nodes:
            at = open_nodes.pop()
            found |= self._commands.get(at, set())
            keyed = self._keyed.get(at)
            if keyed is not None and keyed in self._names:
                found.add(keyed)
                continue
            causes = self._causes.get(at, set()) - seen
            seen |= causes
            open_nodes.extend(causes)
        self._resolved[node] = frozenset(found)
        return self._resolved[node]


def _place(scope: str) -> str:
    """Tenant and workspace of a scope."""
    return scope.rpartition("/")[0]


def _scope_of(subject: str) -> str:
    """The scope where a subject leads, as text; of one that is none, the subject itself."""
    try:
        return str(parse_subject(subject.removeprefix("failed.")).scope)
    except Poison:
        return subject


def _json(text: object) -> Mapping[str, Any]:
    if not isinstance(text, str):
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}

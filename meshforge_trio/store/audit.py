"""What the rows of a store must say of each other, checked from end to end.

One pass over the outputs in their order, then keys, heads and the rest against what that pass has seen. Of each output
one byte is remembered, so a store of any size can be read beside a running worker.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import apsw
import attrs
import orjson

from meshforge_trio.store.rows import last_n
from meshforge_trio.store.schema import CODE_OF_KIND, CODE_OF_OUTCOME, KIND_OF_CODE, OUTCOME_OF_CODE, SCOPE_SHIFT
from meshforge_trio.subjects import Scope, command_subject, event_subject, failed_subject, violation_subject

__all__ = ["Audit", "Finding", "Progress"]

#: Called now and then with what is looked at, how much of it was, and how much there is (0: nobody knows).
Progress = Callable[[str, int, int], None]

_N_MASK: Final = (1 << SCOPE_SHIFT) - 1
# A gap of more numbers than this is told and not looked into.
_GAP_MAX: Final = 1 << 20
_STRIDE: Final = 4096

# What is remembered of an output.
_EVENT: Final = 1
_DEAD: Final = 2
_CONTINUED: Final = 4
_LED_TO: Final = 8
_OWNED: Final = 16
_LETTER: Final = 32
_THERE: Final = 64

_OUTPUTS: Final = """
SELECT o.id, o.kind, o.entity_id, o.version, o.prev, o.chain, o.key, o.event_id, o.name, o.subject, o.msg_id, o.body,
       p.entity_id, p.version, p.chain
FROM outputs o LEFT JOIN outputs p ON p.id = (o.id >> 40 << 40) + o.prev ORDER BY o.id
"""
_HEADS: Final = """
SELECT h.scope, h.entity_id, h.version, h.chain, h.last_n, o.entity_id, o.version, o.chain
FROM heads h LEFT JOIN outputs o ON o.id = (h.scope << 40) + h.last_n ORDER BY h.scope, h.entity_id
"""
_KEYS: Final = """
SELECT k.scope, k.key, k.outcome, k.first_n, k.last_n, k.generation, count(o.id), coalesce(sum(o.key = k.key), 0)
FROM keys k LEFT JOIN outputs o ON o.id BETWEEN (k.scope << 40) + k.first_n AND (k.scope << 40) + k.last_n
GROUP BY k.scope, k.key ORDER BY k.scope, k.key
"""
_MISMATCHES: Final = """
SELECT k.scope, k.key, 2, k.first_n, k.last_n, 0, count(o.id), coalesce(sum(o.key = k.key), 0)
FROM mismatches k LEFT JOIN outputs o ON o.id BETWEEN (k.scope << 40) + k.first_n AND (k.scope << 40) + k.last_n
GROUP BY k.scope, k.key, k.payload_hash
"""
_LETTERS: Final = """
SELECT d.scope, d.key, d.generation, d.n, d.subject, o.kind, o.key, o.body
FROM dead_letters d LEFT JOIN outputs o ON o.id = (d.scope << 40) + d.n ORDER BY d.scope, d.n
"""
_SNAPSHOTS: Final = """
SELECT s.scope, s.entity_id, s.version, s.state, h.version
FROM snapshots s LEFT JOIN heads h ON h.scope = s.scope AND h.entity_id = s.entity_id
"""
_SCOPED: Final = ("leases", "keys", "mismatches", "heads", "snapshots", "attempts", "dead_letters", "generations")


@attrs.frozen
class Finding:
    """Something that does not hold.

    `check` is a short word for it: `pages` (SQLite's own check), `unreadable`, `scope`, `number` (outputs are not dense
    from 1), `row` (an output and its body differ), `link`, `chain`, `head`, `key`, `letter`, `snapshot`, `mark`.
    `scope`, `entity_id`, `n` and `key` say where, as far as that is known.
    """

    check: str
    what: str
    scope: str = ""
    entity_id: str | None = None
    n: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        entity = None if self.entity_id is None else f"entity {self.entity_id!r}"
        output = None if self.n is None else f"output {self.n}"
        key = None if self.key is None else f"key {self.key!r}"
        where = " ".join(part for part in (self.scope, entity, key, output) if part)
        return f"{self.check}: {where}: {self.what}" if where else f"{self.check}: {self.what}"


@attrs.define(eq=False)
class Audit:
    """The checks over one connection, which must see one snapshot. `counts` are the rows that were looked at."""

    connection: apsw.Connection
    progress: Progress
    counts: Counter[str] = attrs.field(factory=Counter)
    _scopes: dict[int, Scope] = attrs.field(factory=dict)
    _flags: dict[int, bytearray] = attrs.field(factory=dict)
    _outputs_in_all: int = 0

    def findings(self) -> Iterator[Finding]:
        """Every finding, in the order of the checks. What cannot be read is one, and the next check goes on."""
        whole = True
        for check in (self._scoped, self._outputs, self._keys, self._heads, self._letters, self._snapshots):
            try:
                yield from check()
            except (apsw.CorruptError, apsw.IOError) as error:
                whole = False
                yield Finding("unreadable", f"the check of {check.__name__.strip('_')} came to an end: {error}")
        if whole:
            yield from self._unclaimed()
            yield from self._marks()

    # -- the parts ---------------------------------------------------------------------------------------------

    def _scoped(self) -> Iterator[Finding]:
        """Every row belongs to a scope that has a name."""
        rows = self.connection.execute("SELECT id, tenant, workspace, agent FROM scopes ORDER BY id")
        self._scopes = {number: Scope(*names) for number, *names in rows}
        self.counts["scopes"] = len(self._scopes)
        self._outputs_in_all = sum(last_n(self.connection, number) for number in self._scopes)
        for table in _SCOPED:
            sql = f"SELECT DISTINCT scope FROM {table} WHERE scope NOT IN (SELECT id FROM scopes)"  # noqa: S608
            for (number,) in self.connection.execute(sql):
                yield Finding("scope", f"{table} has rows of a scope without a name", self._name(number))

    def _outputs(self) -> Iterator[Finding]:
        """Numbers, links, chains, and that each row is what its body says."""
        scope, expected, flags = -1, 1, bytearray()
        for row in self.connection.execute(_OUTPUTS):
            number, n = row[0] >> SCOPE_SHIFT, row[0] & _N_MASK
            if number != scope:
                scope, expected = number, 1
                # Indexed by number, so there is one for 0.
                flags = self._flags[number] = bytearray(1)
                if number not in self._scopes:
                    yield Finding("scope", "outputs of a scope without a name", self._name(number), n=n)
            if n != expected:
                yield self._finding("number", f"the outputs from {expected} to {n - 1} are missing", number, n=n)
                flags.extend(bytes(max(min(n - expected, _GAP_MAX), 0)))
            expected = n + 1
            if len(flags) == n:
                flags.append(_THERE)
                yield from self._output(number, n, flags, row)
            self._count("outputs")

    def _output(self, number: int, n: int, flags: bytearray, row: tuple[Any, ...]) -> Iterator[Finding]:
        _, kind, entity, version, prev, chain, *_, body, prev_entity, prev_version, prev_chain = row
        if kind == CODE_OF_KIND["dead"]:
            flags[n] |= _DEAD
        if version is not None:
            self.counts["events"] += 1
            flags[n] |= _EVENT
            first = version == 1 and prev == 0
            linked = prev is not None and 0 < prev < n and (prev_entity, prev_version) == (entity, version - 1)
            if not first and not linked:
                what = f"version {version} is not linked to the one before, but to output {prev}"
                yield self._finding("link", what, number, entity, n)
            else:
                if hashlib.sha256((b"" if first else prev_chain or b"") + body).digest() != chain:
                    yield self._finding("chain", f"version {version} does not hash to its chain", number, entity, n)
                if not first and flags[prev] & _CONTINUED:
                    what = f"version {version} is there twice: both follow output {prev}"
                    yield self._finding("link", what, number, entity, n)
                if not first:
                    flags[prev] |= _CONTINUED
        elif chain is not None or prev is not None:
            yield self._finding("link", "a link without a version", number, entity, n)
        what = _unlike_its_body(self._scopes.get(number, Scope("", "", "")), row)
        if what:
            yield self._finding("row", what, number, entity, n, row[6])

    def _keys(self) -> Iterator[Finding]:
        """Every record has its outputs, which carry its key and are no other's."""
        for table, sql in (("keys", _KEYS), ("mismatches", _MISMATCHES)):
            for number, key, outcome, first, last, generation, held, carrying in self.connection.execute(sql):
                self._count(table)
                asked = last - first + 1
                if not 0 <= outcome < len(OUTCOME_OF_CODE) or first < 1 or asked < 0:
                    what = f"no record: outcome {outcome}, outputs {first} to {last}"
                    yield self._finding("key", what, number, key=key)
                    continue
                if held != asked or carrying != asked:
                    what = f"of its outputs {first} to {last} {held} are there and {carrying} carry this key"
                    yield self._finding("key", what, number, key=key)
                    continue
                if not self._mark(number, first, last, _OWNED):
                    what = f"of its outputs {first} to {last} one is another record's"
                    yield self._finding("key", what, number, key=key)
                if outcome == CODE_OF_OUTCOME["dead"] and not self._lettered(number, key, generation):
                    what = f"dead, and the letter of generation {generation} is missing"
                    yield self._finding("letter", what, number, key=key)

    def _lettered(self, number: int, key: str, generation: int) -> bool:
        sql = "SELECT 1 FROM dead_letters WHERE scope = ? AND key = ? AND generation = ?"
        return self.connection.execute(sql, (number, key, generation)).fetchone() is not None

    def _heads(self) -> Iterator[Finding]:
        """Every head is at the newest event of its entity."""
        for number, entity, version, chain, n, *newest in self.connection.execute(_HEADS):
            self._count("entities")
            if newest != [entity, version, chain]:
                what = f"the head says version {version}, its output is version {newest[1]} of {newest[0]!r}"
                if newest[:2] == [entity, version]:
                    what = f"the head of version {version} has another chain than its event"
                yield self._finding("head", what, number, entity, n)
            elif self._seen(number, n) & _CONTINUED:
                what = f"the head is at version {version}, and there are later events"
                yield self._finding("head", what, number, entity, n)
            self._mark(number, n, n, _LED_TO)

    def _letters(self) -> Iterator[Finding]:
        """Every dead letter was sent as what is stored."""
        for number, key, generation, n, subject, kind, output_key, body in self.connection.execute(_LETTERS):
            self._count("dead_letters")
            if kind != CODE_OF_KIND["dead"] or output_key != key:
                what = f"its letter of generation {generation} is output {n}, which is no letter of it"
                yield self._finding("letter", what, number, n=n, key=key)
                continue
            told = _object(body)
            if (told.get("subject"), told.get("generation")) != (subject, generation):
                sent = told.get("subject"), told.get("generation")
                what = f"sent as {sent!r:.200}, stored as {(subject, generation)!r:.200}"
                yield self._finding("letter", what, number, n=n, key=key)
            self._mark(number, n, n, _LETTER)

    def _unclaimed(self) -> Iterator[Finding]:
        """Every output has its record, every event its successor or head, every letter that was sent its row."""
        for number, flags in self._flags.items():
            for n, seen in enumerate(flags):
                if not seen & _THERE or seen == _THERE | _OWNED:
                    continue
                if seen & _EVENT and not seen & (_CONTINUED | _LED_TO):
                    entity = self._column("entity_id", number, n)
                    yield self._finding("head", "neither a head nor a later event leads here", number, entity, n)
                if seen & _DEAD and not seen & _LETTER:
                    yield self._finding("letter", "what was sent to the dead letters is not among them", number, n=n)
                if not seen & _OWNED:
                    key = self._column("key", number, n)
                    # Redriving frees a key; the outputs of its dead letter stay.
                    sql = "SELECT 1 FROM generations WHERE scope = ? AND key = ?"
                    if self.connection.execute(sql, (number, key)).fetchone() is None:
                        yield self._finding("key", "an output without a record", number, n=n, key=key)

    def _snapshots(self) -> Iterator[Finding]:
        """Every snapshot is JSON, of a version that its entity has had."""
        for number, entity, version, state, newest in self.connection.execute(_SNAPSHOTS):
            self._count("snapshots")
            if newest is None or not 1 <= version <= newest:
                what = f"a snapshot of version {version}, and the head is at {newest or 'none'}"
                yield self._finding("snapshot", what, number, entity)
            try:
                orjson.loads(state)
            except orjson.JSONDecodeError as error:
                what = f"the snapshot of version {version} is no JSON: {error}"
                yield self._finding("snapshot", what, number, entity)

    def _marks(self) -> Iterator[Finding]:
        """Nothing is said to be published, or hashed, that is not there."""
        for table, column in (("marks", "id >> 40"), ("state_hashes", "scope")):
            sql = f"SELECT {column}, max(n) FROM {table} GROUP BY 1"  # noqa: S608
            for number, n in self.connection.execute(sql):
                newest = max(len(self._flags.get(number, b"")) - 1, 0)
                if n > newest:
                    what = f"{table} name output {n}, and the newest is {newest}"
                    yield self._finding("mark", what, number, n=n)

    # -- what they share ---------------------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        scope = self._scopes.get(number)
        return f"scope {number}" if scope is None else str(scope)

    def _finding(
        self,
        check: str,
        what: str,
        number: int,
        entity: str | None = None,
        n: int | None = None,
        key: str | None = None,
    ) -> Finding:
        return Finding(check, what, self._name(number), entity, n, key)

    def _seen(self, number: int, n: int) -> int:
        flags = self._flags.get(number, b"")
        return flags[n] if 0 < n < len(flags) else 0

    def _mark(self, number: int, first: int, last: int, flag: int) -> bool:
        """Set a flag on outputs; whether none of them had it."""
        flags = self._flags.get(number, bytearray())
        fresh = True
        for n in range(max(first, 1), min(last, len(flags) - 1) + 1):
            fresh = fresh and not flags[n] & flag
            flags[n] |= flag
        return fresh

    def _column(self, column: str, number: int, n: int) -> str | None:
        sql = f"SELECT {column} FROM outputs WHERE id = ?"  # noqa: S608
        row = self.connection.execute(sql, ((number << SCOPE_SHIFT) + n,)).fetchone()
        return None if row is None else row[0]

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        if self.counts[what] % _STRIDE == 0:
            total = self._outputs_in_all if what == "outputs" else 0
            self.progress(what, self.counts[what], total)


def _object(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object, else an empty one."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


def _unlike_its_body(scope: Scope, row: tuple[Any, ...]) -> str:
    """In which column an output is not what its body says; "" if in none."""
    _, code, entity, _, _, _, key, event_id, name, subject, msg_id, body, *_ = row
    if not 0 <= code < len(KIND_OF_CODE):
        return f"its kind is {code}, which there is not"
    told = _object(body)
    if not told:
        return "its body is no JSON object"
    if KIND_OF_CODE[code] == "dead":
        columns = {"key": (key, told.get("key")), "event_id": (event_id, msg_id)}
        subjects = [failed_subject(str(told.get("subject")))]
    elif KIND_OF_CODE[code] == "command":
        columns = {"event_id": (event_id, told.get("id")), "msg_id": (msg_id, told.get("id"))}
        columns |= {"name": (name, told.get("action")), "entity_id": (entity, told.get("entity_id"))}
        to = Scope(str(told.get("tenant")), str(told.get("workspace")), str(told.get("agent")))
        subjects = [command_subject(to, name)]
    else:
        columns = {"event_id": (event_id, told.get("id")), "name": (name, told.get("name"))}
        columns |= {"key": (key, told.get("idempotency_key")), "entity_id": (entity, told.get("entity_id"))}
        columns["msg_id"] = (msg_id[:16], told.get("span_id"))
        subjects = [event_subject(scope, name), violation_subject(scope.tenant, scope.workspace)]
    for column, (found, wanted) in columns.items():
        if found != wanted:
            return f"its {column} is {found!r:.100}, its body says {wanted!r:.100}"
    return "" if subject in subjects else f"its subject is {subject!r:.200}, its body says {subjects[0]!r:.200}"

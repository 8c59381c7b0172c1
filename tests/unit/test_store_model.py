"""The SQLite store against a dictionary: any order of turns, take-overs, kills, lapses and stale commits."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshforge_trio.errors import Fenced, Stale
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Commit, Head, KeyRecord, Lease, Mark, Output
from meshforge_trio.store.sqlite import SQLiteEventStore, inline
from meshforge_trio.subjects import Scope

TTL_NS = 100
SCOPES = (Scope("acme", "main", "orders"), Scope("acme", "test", "orders"))
PROCESSES = st.integers(0, 2)
NUMBERS = st.integers(0, 1)
KEYS = st.sampled_from(["k1", "k2", "k3", "k4", "k5"])
ENTITIES = st.sampled_from(["e1", "e2", ""])


@attrs.define
class ScopeModel:
    """What a scope must hold."""

    epoch: int = 0
    holder: int | None = None
    clean: bool = True
    server_id: str = ""
    keys: dict[str, tuple[KeyRecord, list[Output]]] = attrs.field(factory=dict)
    outputs: list[Output] = attrs.field(factory=list)
    versions: dict[str, int] = attrs.field(factory=dict)
    marks: list[Mark] = attrs.field(factory=list)


@attrs.define
class ProcessModel:
    """A process that has the file open: when its term ends, and the epochs it believes in."""

    expires: int
    believes: dict[int, int] = attrs.field(factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """Three processes, two scopes, one file."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.now = 1
        self.turns = 0
        self.scopes = [ScopeModel(), ScopeModel()]
        self.stores = [self.opened() for _ in range(3)]
        self.processes = [ProcessModel(self.now + TTL_NS) for _ in range(3)]
        self.readers = [self.stores[0].scope(name) for name in SCOPES]

    def opened(self) -> SQLiteEventStore:
        async def open_store() -> SQLiteEventStore:
            return await SQLiteEventStore.open(
                self.directory / "store.db",
                ttl_s=TTL_NS / 1e9,
                synchronous="OFF",
                offload=inline,
                clock=lambda: self.now,
            )

        return trio.run(open_store)

    def teardown(self) -> None:
        for store in self.stores:
            trio.run(store.close)
        shutil.rmtree(self.directory)

    def lost(self, process: int, besides: int | None = None) -> list[int]:
        """Scopes the process believes to serve and does not."""
        return [
            number
            for number, epoch in self.processes[process].believes.items()
            if number != besides and (self.scopes[number].holder, self.scopes[number].epoch) != (process, epoch)
        ]

    @rule(process=PROCESSES, number=NUMBERS, server_id=st.sampled_from(["A", "B"]))
    def take_lease(self, process: int, number: int, server_id: str) -> None:
        scope, me = self.scopes[number], self.processes[process]
        rival = scope.holder
        free = rival is None or rival == process or self.now >= self.processes[rival].expires
        lease = trio.run(self.stores[process].scope(SCOPES[number]).take_lease, server_id)
        assert lease == (Lease(scope.epoch + 1, scope.clean, scope.server_id, len(scope.outputs) + 1) if free else None)
        me.expires = self.now + TTL_NS
        me.believes.pop(number, None)
        if free:
            scope.epoch, scope.holder, scope.clean, scope.server_id = scope.epoch + 1, process, False, server_id
            me.believes[number] = scope.epoch
        assert self.stores[process].lease_valid() is (not self.lost(process, besides=number))

    @rule(process=PROCESSES)
    def keep_alive(self, process: int) -> None:
        if self.lost(process):
            with pytest.raises(Fenced):
                trio.run(self.stores[process].keep_alive)
        else:
            trio.run(self.stores[process].keep_alive)
            self.processes[process].expires = self.now + TTL_NS
            assert self.stores[process].lease_valid()

    @rule(nanoseconds=st.sampled_from([1, 50, 99, 100]))
    def pass_time(self, nanoseconds: int) -> None:
        self.now += nanoseconds

    @rule(
        process=PROCESSES,
        number=NUMBERS,
        keys=st.lists(KEYS, min_size=1, max_size=3),
        entities=st.lists(ENTITIES, min_size=3, max_size=3),
        skew=st.sampled_from([0, 0, 0, 0, 0, -1, 1]),
        clean=st.booleans(),
    )
    def commit(self, process: int, number: int, keys: list[str], entities: list[str], skew: int, clean: bool) -> None:
        """A turn; with `skew` its entity versions are off, and a key may exist or come twice."""
        scope, me = self.scopes[number], self.processes[process]
        epoch = me.believes.get(number, scope.epoch)
        commit = self.turn(scope, epoch, list(zip(keys, entities, strict=False)), skew)
        commit.clean = clean
        store = self.stores[process].scope(SCOPES[number])
        if (scope.holder, scope.epoch) != (process, epoch):
            with pytest.raises(Fenced):
                trio.run(store.commit, commit, no_probe)
            me.believes.pop(number, None)
            return
        repeated = len(set(keys)) < len(keys) or not scope.keys.keys().isdisjoint(keys)
        if repeated or (skew and commit.heads):
            with pytest.raises(Stale):
                trio.run(store.commit, commit, no_probe)
            return
        trio.run(store.commit, commit, no_probe)
        scope.outputs += commit.outputs
        for record in commit.keys:
            scope.keys[record.key] = (record, [commit.outputs[record.first_n - commit.outputs[0].n]])
        scope.versions |= {head.entity_id: head.version for head in commit.heads}
        assert commit.mark is not None
        scope.marks.insert(0, commit.mark)
        if clean:
            scope.holder, scope.clean = None, True
            del me.believes[number]

    def turn(self, scope: ScopeModel, epoch: int, commands: list[tuple[str, str]], skew: int) -> Commit:
        self.turns += 1
        newest = len(scope.outputs)
        commit = Commit(epoch, mark=Mark(newest, self.turns, f"m{self.turns}", 0, "", 0.0))
        versions = {entity: scope.versions.get(entity, 0) + skew for _, entity in commands if entity}
        chains = {output.entity_id: output.chain or b"" for output in scope.outputs}
        for n, (key, entity) in enumerate(commands, newest + 1):
            output = Output(n, "event", key, f"{key}_e", "e", "evt.a.b.c.e", f"m{n}", b"%d" % self.turns)
            if entity:
                versions[entity] += 1
                chains[entity] = hashlib.sha256(chains.get(entity, b"") + output.body).digest()
                output = attrs.evolve(output, entity_id=entity, version=versions[entity], chain=chains[entity])
            commit.outputs.append(output)
            commit.keys.append(KeyRecord(key, b"h", "decided", n, n))
        commit.heads = [Head(entity, version, chains[entity]) for entity, version in versions.items()]
        return commit

    @rule(process=PROCESSES, killed=st.booleans())
    def restart(self, process: int, killed: bool) -> None:
        if killed:
            self.stores[process].abandon()
        else:
            trio.run(self.stores[process].close)
        for scope in self.scopes:
            if scope.holder == process:
                scope.holder = None
        self.stores[process] = self.opened()
        if process == 0:
            self.readers = [self.stores[0].scope(name) for name in SCOPES]
        self.processes[process] = ProcessModel(self.now + TTL_NS)

    @rule(process=PROCESSES, number=NUMBERS)
    def read(self, process: int, number: int) -> None:
        scope = self.scopes[number]
        asked = ["k1", "k2", "k3", "k4", "k5"]
        store = self.stores[process].scope(SCOPES[number])
        reading = trio.run(store.read, [(key, b"h") for key in asked], ["e1", "e2"])
        assert reading.keys == scope.keys
        assert {entity: (head.version, list(head.tail)) for entity, head in reading.heads.items()} == {
            entity: (version, [o.body for o in scope.outputs if o.entity_id == entity])
            for entity, version in scope.versions.items()
        }

    @precondition(lambda self: self.turns)
    @invariant()
    def rows_are_those_of_the_model(self) -> None:
        for scope, store in zip(self.scopes, self.readers, strict=True):
            assert trio.run(store.outputs_after, 0, 1000) == scope.outputs
            assert trio.run(store.marks) == scope.marks
            assert {h.entity_id: h.version for h in trio.run(store.heads, "", 10)} == scope.versions

    @rule(number=NUMBERS, entity=st.sampled_from(["e1", "e2", "e9"]), after=st.integers(-1, 5), limit=st.integers(1, 4))
    def history(self, number: int, entity: str, after: int, limit: int) -> None:
        """Asked of the same reader again and again, which remembers what it walked last."""
        own = [o for o in self.scopes[number].outputs if o.entity_id == entity]
        assert trio.run(self.readers[number].history, entity, after, limit) == own[max(after, 0) :][:limit]


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestStore = StoreMachine.TestCase

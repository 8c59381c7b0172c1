"""Histories: what is written is what is read, and what cannot be judged is refused by line."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.history import KINDS, VERSION, History, HistoryError, Record, now_ns, read_history

HEADER: Mapping[str, Any] = {"version": VERSION, "scenario": "s", "plan": "", "app": "a:b"}


def begun(path: Path) -> History:
    """A history with its header."""
    history = History.open(path, "harness")
    history.write("header", **HEADER)
    return history


def lines(*records: Any) -> bytes:
    """A header and what follows it, each as it stands if it is bytes."""
    head = {"t": 1, "actor": "harness", "kind": "header", **HEADER}
    return b"".join(
        record if isinstance(record, bytes) else orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        for record in (head, *records)
    )


def refused(tmp_path: Path, text: bytes) -> str:
    """What `read_history` says of a file with this in it; it names the file."""
    path = tmp_path / "history.jsonl"
    path.write_bytes(text)
    with pytest.raises(HistoryError) as caught:
        read_history(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_several_actors_write_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    before = now_ns()
    history = begun(path)
    history.of("worker#1").write("point", point="after_store", nth=2)
    history.write("exit", actor="worker#1", status=-9)
    history.close()
    header, point, ended = read_history(path)
    assert header.fields == HEADER
    assert point == Record(point.t, "worker#1", "point", {"point": "after_store", "nth": 2})
    assert (ended.actor, ended["status"]) == ("worker#1", -9)
    assert before <= header.t <= point.t <= ended.t <= now_ns()


def test_it_is_appended_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    begun(path).close()
    again = History.open(path, "nats")
    again.write("up")
    again.close()
    assert [record.kind for record in read_history(path)] == ["header", "up"]


def test_what_was_written_survives_the_death_of_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = begun(path)
    pid = os.fork()
    if pid == 0:
        history.of("worker#1").write("fault", rule="worker#1:after_ack@1=kill")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    history.write("exit", actor="worker#1", status=-9)
    history.close()
    assert [record.kind for record in read_history(path)] == ["header", "fault", "exit"]


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = begun(path)
    pids = []
    for number in range(1, 5):
        pid = os.fork()
        if pid == 0:
            mine = history.of(f"worker#{number}")
            for nth in range(200):
                mine.write("heard", subject="s" * 300, msg_id=str(nth))
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0, 0]
    history.close()
    records = read_history(path)
    assert len(records) == 801
    for number in range(1, 5):
        mine_in_order = [record["msg_id"] for record in records if record.actor == f"worker#{number}"]
        assert mine_in_order == [str(nth) for nth in range(200)]


_TEXT = st.text(max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), _TEXT, st.dictionaries(_TEXT, _TEXT | st.integers(-9, 9)))))
def test_whatever_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, told: list[Any]) -> None:
    path = tmp_path_factory.mktemp("history") / "history.jsonl"
    history = begun(path)
    expected = []
    for kind, actor, more in told:
        fields = {**dict.fromkeys(KINDS[kind], 0), **more}
        for own in ("t", "actor", "kind", "self"):
            fields.pop(own, None)
        history.of(actor or "nobody").write(kind, **fields)
        expected.append((actor or "nobody", kind, fields))
    history.close()
    assert [(record.actor, record.kind, record.fields) for record in read_history(path)[1:]] == expected


# -- what is no history ---------------------------------------------------------------------------------------------


def test_one_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"nowhere\.jsonl: No such file"):
        read_history(tmp_path / "nowhere.jsonl")


def test_one_without_its_beginning(tmp_path: Path) -> None:
    assert "does not begin with a header" in refused(tmp_path, b"")
    assert "does not begin with a header" in refused(tmp_path, b'{"t":1,"actor":"nats","kind":"up"}\n')


@pytest.mark.parametrize("left", range(1, 20))
def test_one_whose_end_is_missing(tmp_path: Path, left: int) -> None:
    whole = lines({"t": 2, "actor": "nats", "kind": "up"})
    assert "truncated in line 2" in refused(tmp_path, whole[:-left])


@pytest.mark.parametrize("version", [VERSION + 1, "1", None, 1.0, True])
def test_one_of_another_version(tmp_path: Path, version: object) -> None:
    told = refused(tmp_path, lines().replace(b'"version":1', b'"version":' + orjson.dumps(version)))
    assert f"written in version {version!r}" in told
    assert "judge it with the version that wrote it" in told


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"nonsense\n", "line 2 is no JSON"),
        (b"\n", "line 2 is no JSON"),
        (b"\xff\xfe\n", "line 2 is no JSON"),
        (b"[]\n", "line 2 is no object"),
        ({"actor": "nats", "kind": "up"}, "line 2 lacks t, actor or kind"),
        ({"t": 1.5, "actor": "nats", "kind": "up"}, "line 2 lacks t, actor or kind"),
        ({"t": 1, "actor": 5, "kind": "up"}, "line 2 lacks t, actor or kind"),
        ({"t": 1, "actor": "nats", "kind": None}, "line 2 lacks t, actor or kind"),
        ({"t": 1, "actor": "nats", "kind": "sideways"}, "line 2 is of the unknown kind 'sideways'"),
        ({"t": 1, "actor": "worker#1", "kind": "point"}, "line 2: point lacks nth, point"),
        ({"t": 1, "actor": "worker#1", "kind": "point", "nth": 1}, "line 2: point lacks point"),
    ],
)
def test_one_with_a_line_that_is_none(tmp_path: Path, line: object, why: str) -> None:
    assert why in refused(tmp_path, lines(line))


def test_every_kind_is_told_in_the_docstring() -> None:
    import chaos.history

    assert chaos.history.__doc__ is not None
    for kind in KINDS:
        assert f"`{kind}`" in chaos.history.__doc__

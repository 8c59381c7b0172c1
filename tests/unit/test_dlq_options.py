"""What is typed after `meshforge dlq`, what it shows, and the files it writes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshforge_trio.cli.dlq import body_lines
from meshforge_trio.cli.dlq_fates import rate
from meshforge_trio.cli.dlq_options import age, age_of, cells, hex_lines, plain, print_table, table_of, whole_file
from meshforge_trio.errors import Misconfigured

# --- what was typed


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("15m", 900.0), ("2h", 7200.0), ("7d", 604_800.0), ("0s", 0.0), ("1.5h", 5400)]
)
def test_an_age(text: str, seconds: float) -> None:
    assert age(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "5 m", "-5m", "m", "5M", "1h30m", "1e3s", "nan", "٣s", "9" * 10 + "s", "5m\n"]
)
def test_no_age(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no age"):
        age(text)


@given(st.floats(0, 1e9))
def test_an_age_told_is_not_more_than_it_is(seconds: float) -> None:
    told = age(age_of(seconds))
    assert told <= seconds < 2 * told + 1


@pytest.mark.parametrize(
    ("text", "per_s"), [("10", 10.0), ("10/s", 10.0), ("30/m", 0.5), ("7200/h", 2.0), ("0.5", 0.5)]
)
def test_a_rate(text: str, per_s: float) -> None:
    assert rate(text) == per_s


@pytest.mark.parametrize("text", ["", "0", "0/s", "-1", "10/d", "fast", "1e9", "10 /s", "inf"])
def test_no_rate(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no rate"):
        rate(text)


# --- what is shown


@given(st.text())
def test_no_terminal_takes_orders_from_a_stranger(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


def test_a_table_takes_brackets_for_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of("#n", "text")
    table.add_row(*cells("1", "[red]\x1b[31mno"))
    print_table(table)
    assert "[red]\\x1b[31mno" in capsys.readouterr().out


@given(st.binary(max_size=100))
def test_hexadecimal_lines_hold_every_byte(content: bytes) -> None:
    lines = list(hex_lines(content))
    assert b"".join(bytes.fromhex(line.split("  ")[1]) for line in lines) == content
    assert "".join(lines).isprintable()


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"a":1,"b":[true]}', ["{", '  "a": 1,', '  "b": [', "    true", "  ]", "}"]),
        (b'{"a": 1}', ["{", '  "a": 1', "}"]),
        ('{"a":"ä\u2028"}'.encode(), ["{", '  "a": "ä\\u2028"', "}"]),
        (b'{"a":1,"a":2}', ['{"a":1,"a":2}']),
        (b'{"a":1.00000000000000000001}', ['{"a":1.00000000000000000001}']),
        (b'{"a":123456789012345678901234567890}', ["{", '  "a": 123456789012345678901234567890', "}"]),
        (b"not json\nat \x1b[31mall", ["not json", "at \\x1b[31mall"]),
        (b"[" * 100_000, ["[" * 100_000]),
        (b"1" * 5_000, ["1" * 5_000]),
        (b"null", ["null"]),
        (b"", [""]),
        (b"\xff\x00", ["00000000  ff00                              .."]),
    ],
)
def test_a_payload_is_shown_as_it_is(body: bytes, shown: list[str]) -> None:
    assert list(body_lines(body)) == shown


@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode(errors="surrogatepass"))))
def test_any_payload_can_be_shown(body: bytes) -> None:
    assert all(line.isprintable() for line in body_lines(body))


def test_long_content_is_cut_and_says_so() -> None:
    *lines, last = hex_lines(bytes(2000))
    assert (len(lines), last.split(" ")[:3]) == (64, ["...", "2000", "bytes;"])


# --- files


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def fails(force: bool) -> None:
        with whole_file(path, force=force) as file:
            file.write(b"half")
            raise RuntimeError("died")

    with pytest.raises(RuntimeError):
        fails(force=False)
    assert list(tmp_path.iterdir()) == []
    with whole_file(path, force=False) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(RuntimeError):
        fails(force=True)
    with pytest.raises(click.ClickException, match="--force"), whole_file(path, force=False):
        pytest.fail("it is refused before anything is written")
    assert path.read_bytes() == b"first"
    with whole_file(path, force=True) as file:
        file.write(b"second")
    assert path.read_bytes() == b"second"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_whoever_was_faster_keeps_the_name(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def beaten() -> None:
        with whole_file(path, force=False) as file:
            file.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(click.ClickException, match="--force"):
        beaten()
    assert path.read_bytes() == b"theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be written"), whole_file(tmp_path / "no" / "out", force=True):
        pytest.fail("there is no such directory")

"""Log lines: their form, their level, and what they must never show."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import orjson
import pytest
import structlog
from structlog.testing import CapturingLogger

from meshforge_trio.telemetry import mask_secrets, set_up_logging


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Whatever a test configures ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsysbinary: pytest.CaptureFixture[bytes]) -> list[bytes]:
    out, err = capsysbinary.readouterr()
    assert out == b"", "stdout belongs to results"
    return err.splitlines()


def test_json_lines_go_to_stderr_with_utc_time_and_what_was_bound(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    set_up_logging("info", as_json=True)
    log = structlog.get_logger("meshforge").bind(scope="t/w/order")
    log.info("decided", key="k", trace_id="0" * 32, outputs=("a", "b"))
    (line,) = lines(capsysbinary)
    told = orjson.loads(line)
    at = datetime.fromisoformat(told.pop("timestamp"))
    assert at.utcoffset() == timedelta(0)
    assert told == {
        "event": "decided",
        "level": "info",
        "scope": "t/w/order",
        "key": "k",
        "trace_id": "0" * 32,
        "outputs": ["a", "b"],
    }


def test_lines_for_people_have_no_colours_when_nobody_watches(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    set_up_logging("info")
    structlog.get_logger("meshforge").warning("held", key="k")
    (line,) = lines(capsysbinary)
    assert b"\x1b" not in line
    assert b"[warning  ] held key=k" in line


def test_what_is_below_the_level_never_reaches_a_processor() -> None:
    set_up_logging("info")
    sink = CapturingLogger()
    log = structlog.wrap_logger(sink).bind(scope="s")
    log.debug("decided")
    assert not log.is_enabled_for(logging.DEBUG)
    assert log.is_enabled_for(logging.INFO)
    assert sink.calls == []
    log.info("served")
    assert len(sink.calls) == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_are_masked_wherever_they_stand(as_json: bool, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    set_up_logging("debug", as_json=as_json)
    secret = "hunter2"
    log = structlog.get_logger("meshforge").bind(nkey_seed=secret)
    log.info(
        "dialled nats://me:hunter2@host:1",
        url="nats://me:hunter2@host:1,nats://hunter2@other:2",
        password=secret,
        headers={"Authorization": secret, "inner": [{"token": secret}]},
        key="a-plain-key",
    )
    try:
        raise ValueError("cannot reach tls://me:hunter2@host")
    except ValueError:
        log.exception("failed")
    text = b"\n".join(lines(capsysbinary))
    assert secret.encode() not in text
    assert b"a-plain-key" in text
    assert b"@host:1" in text
    assert b"ValueError" in text


def test_a_missing_secret_is_shown_as_missing() -> None:
    assert mask_secrets(None, "info", {"event": "x", "password": None}) == {"event": "x", "password": None}


def test_a_traceback_shows_no_local_values(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    set_up_logging("info")
    entry = "hunter" + "2"
    try:
        raise KeyError(len(entry))
    except KeyError:
        structlog.get_logger("meshforge").exception("failed")
    text = b"\n".join(lines(capsysbinary))
    assert b"KeyError: 7" in text
    assert b"hunter2" not in text


def test_the_standard_librarys_log_comes_out_in_the_same_form(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    set_up_logging("info", as_json=True)
    logging.getLogger("asyncio").warning("slow %s", "callback")
    logging.getLogger("asyncio").info("chatter")
    (line,) = lines(capsysbinary)
    told = orjson.loads(line)
    assert (told["event"], told["level"], told["logger"]) == ("slow callback", "warning", "asyncio")


def test_a_value_json_does_not_know_is_shown_as_text(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    set_up_logging("info", as_json=True)
    structlog.get_logger("meshforge").info("x", what=complex(1, 2), table={1: 2})
    (line,) = lines(capsysbinary)
    assert orjson.loads(line)["what"] == "(1+2j)"

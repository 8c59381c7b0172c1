"""Fixtures every suite may use. Each test has its own nats-server, so suites run in any order and in parallel."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from chaos.lab import Lab, open_lab
from chaos.zygote import Zygote, open_zygote
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.server import PrivateServer

# How long an example takes is the machine's business.
hypothesis.settings.register_profile("meshforge", deadline=None)
hypothesis.settings.load_profile("meshforge")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started by a shell in the background: what the tests start would inherit that and be deaf to their interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands that are called in this process set logging up for all of it, debug lines left out."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def nats_server() -> Iterator[PrivateServer]:
    """A running server that is gone after the test, whatever the test did to it."""
    with PrivateServer() as server:
        yield server


@pytest.fixture
async def aio_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """The loop the bridge needs around everything; ask for it in every test that opens a broker session."""
    async with open_loop() as loop:
        yield loop


@pytest.fixture
async def zygote(aio_loop: asyncio.AbstractEventLoop) -> AsyncIterator[Zygote]:
    """A fork server for worker processes, with the bridge's loop around it; all of it is gone after the test."""
    async with open_zygote() as fork_server:
        yield fork_server


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A laboratory with one nats-server, for cases one after another; runs that are kept go below `tmp_path`."""
    async with open_lab(reports=tmp_path / "runs") as opened:
        yield opened

"""One round of the soak: load and faults together, then calm, then judgement.

load     commands at a steady rate, while the storm of the round kills, stops, and takes the server away
after    no more faults: what was broken must work again
end      everything is decided; what the round left is copied, and judged in a process of its own
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from benchmarks.soak_image import Bounds, bounds_now, save_round_image
from benchmarks.soak_judge import RoundVerdict, verdict_from_json
from benchmarks.soak_load import WORKSPACES, Load, entity_prefix
from benchmarks.soak_storm import Strike, draw_storm
from benchmarks.soak_world import SoakWorld
from chaos.case import Case
from chaos.evidence import Sent
from chaos.faults.proxy import Proxy
from chaos.observer import Observer
from chaos.world import WorldError

__all__ = ["APP", "LIMIT", "Round"]

APP: Final = "benchmarks.soak_app:app"
#: How often a handler may be called for one command.
LIMIT: Final = 3
_TICK_S: Final = 0.1
_AFTER: Final = 40
_RESENT: Final = 30
_CORPSES_MAX: Final = 3
_DRAIN_S: Final = 90.0
_JUDGE_S: Final = 300.0


class Round:
    """The `number`th of a soak. `home` is its directory. `tell` is told what it does.

    `drained` says that everything was decided in time: if not, no round after it could be told from it.
    """

    def __init__(
        self,
        seed: str,
        number: int,
        world: SoakWorld,
        proxy: Proxy,
        observer: Observer,
        home: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._seed = seed
        self._number = number
        self._world = world
        self._proxy = proxy
        self._observer = observer
        self._tell = tell
        self._load = Load(seed, number)
        self._bounds = Bounds()
        self._images = 0
        self._sending = trio.Lock()
        self.home = home
        self.sent: list[Sent] = []
        self.drained = False

    async def run(self, seconds: float, rate: float) -> RoundVerdict:
        """Load for so long, at so many commands a second, and judge.

        Raises:
            WorldError: it could not be judged.
            trio.TooSlowError: a fault could not be carried out, or its consequences not be copied.
        """
        self.home.mkdir(parents=True)
        self._bounds = await bounds_now(await self._observer.broker(), self._world.store)
        self._world.begin_round()
        self._observer.received.clear()
        self._tell("load and faults")
        self._proxy.calm = False
        with trio.fail_after(seconds + _DRAIN_S):
            async with trio.open_nursery() as nursery:
                for strike in draw_storm(self._seed, self._number, seconds):
                    nursery.start_soon(self._strike, strike)
                await self._send_at(rate, seconds)
        self._tell("calm")
        self._proxy.calm = True
        with trio.move_on_after(_DRAIN_S):
            await self._calm()
            await self._send(self._load.batch(_AFTER, "after"))
            await self._calm()
            self._world.history.write("drained")
            self.drained = True
        await self._image(final=True)
        self._world.end_round(self.home, f"soak-{self._seed}-{self._number}")
        (self.home / "run.json").write_bytes(orjson.dumps(self._as_run()))
        self._tell("judging")
        return await self._judged()

    # -- load --------------------------------------------------------------------------------------------------

    async def _send_at(self, rate: float, seconds: float) -> None:
        begun = trio.current_time()
        owed = 0.0
        while (passed := trio.current_time() - begun) < seconds:
            # While the server is away nothing is sent, and nothing is made up for: a burst would hide what follows.
            owed = min(rate * passed - len(self.sent), rate)
            if owed >= 1:
                await self._send(self._load.batch(int(owed)))
            await trio.sleep(_TICK_S)

    async def _send(self, sent: Sequence[Sent]) -> None:
        async with self._sending:
            self.sent.extend(sent)
            await self._observer.send(sent)

    # -- faults ------------------------------------------------------------------------------------------------

    async def _strike(self, strike: Strike) -> None:
        await trio.sleep(strike.at_s)
        world, mortals = self._world, self._world.mortals
        victim = mortals[int(strike.lot * len(mortals))] if mortals else None
        anybody = world.living[int(strike.lot * len(world.living))] if world.living else None
        match strike.kind:
            case "kill" if victim is not None:
                world.kill(victim)
            case "corpse" if victim is not None and self._images < _CORPSES_MAX:
                await world.freeze(victim, partial(self._image, final=False))
            case "drain" if victim is not None:
                world.tell_to_end(victim)
            case "stop" | "takeover" if anybody is not None:
                await world.stop(anybody, strike.seconds)
            case "restart":
                await world.strike_server("restart")
            case "down":
                await world.strike_server("kill", strike.seconds)
            case "pause":
                await world.strike_server("pause", strike.seconds)
            case "resend":
                await self._send(self._load.again(_RESENT))
            case _:
                # Nobody is there to befall: all were killed a moment ago.
                return

    # -- the end -----------------------------------------------------------------------------------------------

    async def _calm(self) -> None:
        """Return when nothing is left to decide and no fault is under way."""
        while True:
            await self._observer.drained()
            if self._world.at_rest and not await self._observer.pending():
                return
            await trio.sleep(_TICK_S)

    async def _image(self, *, final: bool) -> None:
        self._images += 1
        # What is accepted meanwhile would be in no stream that was copied.
        with trio.fail_after(_DRAIN_S):
            async with self._sending:
                await self._observer.caught_up()
                broker = await self._observer.broker()
                where = self.home / f"image-{self._images}"
                await save_round_image(
                    broker, self._world.store, where, self._bounds, entity_prefix(self._number), final=final
                )
                self._world.history.write("image", number=self._images, final=final)

    def _as_run(self) -> dict[str, Any]:
        """As `run.json` has it."""
        case = Case(APP, self.sent, name="soak", limit=LIMIT, workspaces=WORKSPACES, must_fire=False, mortal=True)
        return {**case.as_run(self.sent), "claims": [], "replay": f"python -m benchmarks.soak_judge {self.home}"}

    async def _judged(self) -> RoundVerdict:
        command = [sys.executable, "-m", "benchmarks.soak_judge", str(self.home)]
        with trio.move_on_after(_JUDGE_S):
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            if done.returncode:
                raise WorldError(f"round {self._number} cannot be judged:\n{done.stderr.decode(errors='replace')}")
            (self.home / "verdict.json").write_bytes(done.stdout)
            return verdict_from_json(done.stdout)
        raise WorldError(f"round {self._number} was not judged within {_JUDGE_S:g} s: {self.home}")

"""The campaign `locks`: rounds of the bare lock, and rounds of whole commands on one folder."""

import json
from pathlib import Path
from random import Random
from typing import ClassVar

from stress import forked
from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.locks import bare, defects

BARE_ROUNDS, COMMAND_ROUNDS = 2_000, 100


class Locks(Campaign):
    """Never two owners at once, nobody waits for ever, a dead owner stops nobody, who is refused hears who has it."""

    name, unit = "locks", "rounds"
    defects: ClassVar = defects.DEFECTS

    def __init__(self, ground: Path, seed: int) -> None:
        self.seed, self.ground = seed, ground

    def __len__(self) -> int:
        return BARE_ROUNDS + COMMAND_ROUNDS

    def case(self, number: int) -> Outcome:
        rng = Random(f"{self.seed} {number}")
        if number < BARE_ROUNDS:
            kind, faults = bare.play(self.ground / "bare", rng)
        else:
            kind, faults = self._of_commands(number - BARE_ROUNDS, rng)
        if not faults:
            return held(kind)
        return hung(kind, faults[0]) if "no end" in faults[0] else missed(kind, faults[0])

    def _of_commands(self, number: int, rng: Random) -> tuple[str, list[str]]:
        """In a fork that loads the libraries: without them a round of the bare lock takes a quarter of the time."""

        def play() -> None:
            from stress.locks.commands import Commands

            print(json.dumps(Commands(self.ground).play(number, rng)))

        done = forked.run(play, self.ground / "round-of-commands", seconds=1800)
        if done.code != 0:
            raise RuntimeError(f"round {number} of commands ended with {done.code}: {done.err[-3000:]}")
        kind, faults = json.loads(done.out.splitlines()[-1])
        return kind, faults

"""The campaign `locks`: rounds of the bare lock, and rounds of whole commands on one folder."""

from pathlib import Path
from random import Random
from typing import ClassVar

from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.locks import bare, commands, defects

BARE_ROUNDS, COMMAND_ROUNDS = 2_000, 100


class Locks(Campaign):
    """Never two owners at once, nobody waits for ever, a dead owner stops nobody, who is refused hears who has it."""

    name, unit = "locks", "rounds"
    defects: ClassVar = defects.DEFECTS

    def __init__(self, ground: Path, seed: int) -> None:
        self.seed, self.ground = seed, ground
        self.commands = commands.Commands(ground)

    def __len__(self) -> int:
        return BARE_ROUNDS + COMMAND_ROUNDS

    def case(self, number: int) -> Outcome:
        rng = Random(f"{self.seed} {number}")
        if number < BARE_ROUNDS:
            kind, faults = bare.play(self.ground / "bare", rng)
        else:
            kind, faults = self.commands.play(number - BARE_ROUNDS, rng)
        if not faults:
            return held(kind)
        return hung(kind, faults[0]) if "no end" in faults[0] else missed(kind, faults[0])

"""Workers as the driver sees them, and what is given to them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from precompute.cluster.answers import Refusal


@dataclass(slots=True, kw_only=True, eq=False)
class Task:
    """Something that any worker can do.

    name       for messages and for Ray's dashboard
    method     of the actor, with its arguments
    lost       how often its worker was lost
    refused    what workers have refused it for, by their numbers
    """

    name: str
    method: str
    arguments: tuple[Any, ...] = ()
    lost: int = 0
    refused: dict[int, Refusal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Something that every worker does before its first task, and again after a restart.

    name        the method of the actor
    arguments   for a worker; or why it is left out
    take        called with its answer; the result says why it is left out
    repeated    Ray itself repeats it if the worker ends: for the first stage, which waits until there is room
    """

    name: str
    arguments: Callable[["Member"], tuple[Any, ...] | Refusal]
    take: Callable[["Member", Any], Refusal | None]
    repeated: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A worker. machine, pid, device: known once it has looked around; tasks, tokens, seconds: of its work so far.

    failed_starts: how often it was lost before a task, since its last one; retries: tasks that it was lost in.
    """

    number: int
    actor: Any
    machine: str = ""
    pid: int = 0
    node_id: str = ""
    device: str = ""
    passed: set[str] = field(default_factory=set)
    work: Stage | Task | None = None
    answer: Any = None
    tasks: int = 0
    tokens: int = 0
    seconds: float = 0.0
    retries: int = 0
    failed_starts: int = 0

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.machine}" if self.machine else "")

    def begin(self, work: Stage | Task, name: str, arguments: tuple[Any, ...], retries: int = 0) -> None:
        """Give it something to do. retries: how often Ray repeats it if the worker ends."""
        self.work = work
        method = getattr(self.actor, work.name if isinstance(work, Stage) else work.method)
        self.answer = method.options(name=name, max_task_retries=retries).remote(*arguments)

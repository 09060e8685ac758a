"""Crew: the workers of a cluster. Each passes the same stages, then gets one task after the other.

Ray places and restarts the workers, which are actors. What is here only hands the next task to one that is idle,
counts how often a task was begun again, and says in one line what became of a worker.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from precompute.cluster.answers import Refusal
from precompute.cluster.members import Member, Stage, Task
from precompute.cluster.session import logs_text
from precompute.cluster.sizes import Sizes
from shards.cli.text import counted
from shards.errors import AlignDistilError

SECONDS_BETWEEN_LOOKS = 5.0
"""How often the cluster is asked whether it has grown."""
SECONDS_OF_SILENCE = 60.0
"""When nothing runs for so long, a line says what is awaited."""


class WorkersLost(AlignDistilError, RuntimeError):
    """A task was begun more often than allowed, or no worker is left."""


class Crew:
    """Workers of one kind. The caller's thread does everything.

    kind: class of the actors; its methods give a value or a Refusal. say: prints a line for the user.
    """

    def __init__(self, kind: type, sizes: Sizes, *, max_retries: int, say: Callable[[str], None]) -> None:
        self.members: list[Member] = []
        self.started = False
        """Whether a worker that does not fit is left out; before, it ends the command."""
        self._ray, self._sizes, self._max_retries, self._say = sizes.ray, sizes, max_retries, say
        self._actor = self._ray.remote(kind)
        self._stages: list[Stage] = []
        self._queue: deque[Task] = deque()
        self._take: Callable[[Member, Task, Any], None] = lambda member, task, found: None
        self._unfinished = 0
        self._left_out: list[Refusal] = []
        self._hired = 0
        self._looked = self._heard = time.monotonic()
        self._grow()

    def open(self, stage: Stage) -> None:
        """Let every worker pass one more stage, those that come later too."""
        self._stages.append(stage)

    def close(self, stage: Stage) -> None:
        """Workers that come later need not pass this stage."""
        self._stages.remove(stage)

    def until(self, done: Callable[[], bool]) -> None:
        """Go on until `done`."""
        while not done():
            self._step()

    def passed(self, stage: Stage) -> list[Member]:
        """The workers that have passed a stage."""
        return [member for member in self.members if stage.name in member.passed]

    def run(self, tasks: Iterable[Task], take: Callable[[Member, Task, Any], None]) -> None:
        """Hand out these tasks until all are done; take: called with the worker and the result of each."""
        self._queue, self._take = deque(tasks), take
        self._unfinished = len(self._queue)
        self.until(lambda: self._unfinished == 0)

    def ask(self, task: Task) -> Any:
        """The result of one task."""
        results: list[Any] = []
        self.run([task], lambda member, task, found: results.append(found))
        return results[0]

    def end(self) -> None:
        """End all workers."""
        for member in self.members:
            self._ray.kill(member.actor)
        self.members.clear()

    # ---- one step

    def _step(self) -> None:
        self._grow()
        for member in self.members:
            if member.work is None:
                self._give(member)
        if not self.members:
            raise self._left_out[-1].error() if self._left_out else WorkersLost("ray: expected workers, none is left")
        busy = {member.answer: member for member in self.members if member.work is not None}
        done = self._ray.wait(list(busy), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)[0] if busy else []
        for reference in done:
            self._hear(busy[reference])
        if done or any(isinstance(member.work, Task) for member in self.members):
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > SECONDS_OF_SILENCE:
            self._say_awaited()

    def _grow(self) -> None:
        """Add the workers for which there is room now."""
        now = time.monotonic()
        if self.members and now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        while len(self.members) + len(self._left_out) < self._sizes.wanted:
            number, self._hired = self._hired, self._hired + 1
            flags = {**self._sizes.resources, "max_restarts": -1, "max_concurrency": 1}
            self.members.append(Member(number=number, actor=self._actor.options(**flags).remote(number)))

    def _give(self, member: Member) -> None:
        """Give an idle worker its next stage or task, if there is one."""
        stage = next((stage for stage in self._stages if stage.name not in member.passed), None)
        if stage is not None:
            try:
                given = stage.arguments(member)
            except self._ray.exceptions.RayError as exc:
                self._lost(member, stage, exc)
                return
            if isinstance(given, Refusal):
                self._leave_out(member, given)
            else:
                member.begin(stage, stage.name, given, retries=self._max_retries if stage.repeated else 0)
            return
        for task in self._queue:
            if member.number not in task.refused:
                self._queue.remove(task)
                member.begin(task, task.name, task.arguments)
                return

    def _hear(self, member: Member) -> None:
        """Take the answer of a worker."""
        work, member.work = member.work, None
        assert work is not None
        try:
            found = self._ray.get(member.answer)
        except self._ray.exceptions.RayError as exc:
            self._lost(member, work, exc)
            return
        if isinstance(work, Stage):
            refusal = found if isinstance(found, Refusal) else work.take(member, found)
            if refusal is not None:
                self._leave_out(member, refusal)
            member.passed.add(work.name)
        elif isinstance(found, Refusal):
            self._refused(member, work, found)
        else:
            member.failed_starts = 0
            self._unfinished -= 1
            self._take(member, work, found)

    # ---- what goes wrong

    def _lost(self, member: Member, work: Stage | Task, error: Any) -> None:
        """A worker has ended, or its work raised an error that is none of the user's input. Begin the work again."""
        member.passed.clear()
        failed = isinstance(error, self._ray.exceptions.RayTaskError)
        if failed:  # such as a GPU that no longer answers: its process may be good for nothing
            self._ray.kill(member.actor, no_restart=False)
        what = first_words(error) if failed else f"its process {member.pid} or its machine ended"
        if isinstance(work, Stage):
            self._failed_start(member, work, what, error if failed else None)
            return
        member.retries += 1
        work.lost += 1
        if work.lost > self._max_retries:
            if failed:
                raise error
            begun = f"begun {work.lost} times, and each time its worker ended"
            raise WorkersLost(f"{work.name}: {begun}, the last one {member}; {logs_text(self._ray)}")
        self._queue.appendleft(work)
        again = f"begun again ({work.lost} of {self._max_retries} retries)"
        self._say(f"{member} was lost in {work.name}, which is {again}: {what}")

    def _failed_start(self, member: Member, stage: Stage, what: str, error: BaseException | None) -> None:
        member.failed_starts += 1
        if member.failed_starts <= self._max_retries:
            self._say(f"{member} was lost before its work, at {stage.name}, and starts again: {what}")
        elif error is not None and not self.started:
            raise error
        else:
            line = f"lost {member.failed_starts} times before its work, at {stage.name}; {logs_text(self._ray)}"
            self._leave_out(member, Refusal(kind="OptionError", message=line))

    def _refused(self, member: Member, task: Task, refusal: Refusal) -> None:
        """Try the task on another worker. Raises the error if there is none."""
        task.refused[member.number] = refusal
        others = [other for other in self.members if other.passed and other.number not in task.refused]
        if not others or len(task.refused) > self._max_retries:
            raise next(iter(task.refused.values())).error()
        self._queue.appendleft(task)
        self._say(f"{task.name} is tried on another worker, {member} refuses it: {refusal.message}")

    def _leave_out(self, member: Member, refusal: Refusal) -> None:
        """Go on without a worker. Raises the error before the work has started, or if it was the last one."""
        if not self.started:
            raise refusal.error(str(member))
        self.members.remove(member)
        self._left_out.append(Refusal(kind=refusal.kind, message=f"{member}: {refusal.message}"))
        self._say(f"{member} is left out: {refusal.message}")
        self._ray.kill(member.actor)

    def _say_awaited(self) -> None:
        self._heard = time.monotonic()
        free = self._ray.available_resources()
        found = f"{free.get('GPU', 0):g} free GPUs and {free.get('CPU', 0):g} free CPUs"
        self._say(
            f"waiting for the cluster to start {counted(len(self.members), 'worker')} {self._sizes}; it has {found}"
        )


def first_words(error: Any) -> str:
    """The error of a worker's code in a few words."""
    cause: BaseException = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[-1][:200]}"

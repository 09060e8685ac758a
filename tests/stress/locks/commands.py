"""A round of commands: processes give one command on one folder, until each finds it done.

Some are killed or suspended, or the folder is removed. Whoever is refused hears by whom, and tries again, as a person
or a scheduler would. At the end there is what one process alone would have left, byte for byte.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from unittest import mock

import yaml
from tiny import make_llama, make_pairs, make_trio, save, write_jsonl

from precompute.build.__main__ import main as build
from precompute.rollout.__main__ import main as rollout
from shards.copy.__main__ import main as copy
from shards.errors import AlignDistilError, CacheConflict
from shards.locks.lock import LOCK_FILE
from shards.pipeline.__main__ import run_pipeline
from stress import forked
from stress.locks.bare import REFUSAL, read
from student.train.__main__ import main as train

SECONDS, PAUSE = 240, 0.02
KINDS = ("build", "train", "rollout", "copy", "pipeline", "build, folder removed", "build on two machines")
TRAIN = {
    **{"use_cpu": "true", "report_to": "none", "disable_tqdm": "true", "dataloader_pin_memory": "false"},
    **{"global_batch_size": 4, "per_device_train_batch_size": 4, "max_steps": 3, "warmup_steps": 0, "save_steps": 1},
    **{"resume_from_checkpoint": "true"},
}
WEIGHTS = "model.safetensors"


class Commands:
    """The commands, their inputs, and what each leaves alone. All is made in forks, when it is first needed."""

    def __init__(self, ground: Path) -> None:
        self.ground, self.round = ground / "commands", ground / "round"

    def play(self, number: int, rng: Random) -> tuple[str, list[str]]:
        """A round; its kind, and what was wrong, a line each."""
        kind, count = KINDS[number % len(KINDS)], rng.choice((2, 2, 3))
        expected = self._left_alone(kind.split(" ")[0].rstrip(","))
        self.round.mkdir()
        server, environment = start_server(self.round) if "machines" in kind else (None, {})
        try:
            processes = [self._start(kind, number, environment) for number in range(count)]
            ends = disturb(processes, rng, self.round, removes="removed" in kind)
            if server is not None:
                forked.run(lambda: fetch_all(environment, self.round / "out"), self.round / "fetch")
            faults = [*judged(self.round, kind, processes, ends), *differs(self.round / "out", expected)]
            return f"{kind}, {count} processes", faults
        finally:
            for pid in [*processes, *([server] if server else [])]:
                end_all(pid)
            shutil.rmtree(self.round)

    def _start(self, kind: str, number: int, environment: dict[str, str]) -> int:
        def work() -> None:
            os.environ.update(environment, ALIGNDISTIL_CACHE=str(self.round / f"machine-{number}"))
            until_done(self._command(kind, self.round), lenient="removed" in kind)

        return forked.start(work, self.round / f"log-{number}")

    def _left_alone(self, command: str) -> dict[str, bytes]:
        """File -> content, of one process alone."""
        if not self.ground.exists():
            self._run(self._make_inputs)
        place = self.ground / command
        if not (place / "done").exists():
            if command != "build":
                self._left_alone("build")  # the others read it
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            self._run(self._command(command, place))
            (place / "done").touch()
        return content(place / "out")

    def _run(self, work: Callable[[], None]) -> None:
        self.ground.mkdir(exist_ok=True)
        done = forked.run(work, self.ground / "log", SECONDS)
        assert done.code == 0, done.err[-3000:]

    def _make_inputs(self) -> None:
        make_trio(self.ground)
        save(make_llama(7), self.ground / "student")
        write_jsonl(self.ground / "pairs.jsonl", make_pairs(6))

    def _command(self, kind: str, place: Path) -> Callable[[], None]:
        out, data = place / "out", str(self.ground / "pairs.jsonl")
        models = [f"{role}={self.ground / role}" for role in ("dpo", "reverse", "reference")]
        sizes = {"top_k": 5, "max_top_k": 8, "tokens_per_shard": 8}
        target = "s3://bucket-0/out" if "machines" in kind else str(out)
        building = {"models": models, "data": data, "out": target, **sizes}
        cache, student = str(self.ground / "build" / "out"), str(self.ground / "student")
        training = {"shards": cache, "model": student, "output_dir": str(out), **TRAIN}
        match kind.split(" ")[0].rstrip(","):
            case "build":
                return lambda: build(flags(building))
            case "train":
                return lambda: train(flags(training))
            case "rollout":
                sampling = {"model": student, "data": data, "out": str(out / "samples.jsonl"), "max_new_tokens": 6}
                return lambda: rollout(flags(sampling | {"batch_size": 2}))
            case "copy":
                return lambda: copy([cache, str(out)])
            case "pipeline":
                steps = {"build": building | {"out": "$out/shards"}, "train": training | {"shards": "$out/shards"}}
                return lambda: pipeline(place, steps | {"train": steps["train"] | {"output_dir": "$out/student"}})
        raise AssertionError(kind)


# ---- in the forks


def flags(given: dict[str, object]) -> list[str]:
    values = ((name, value if isinstance(value, list) else [value]) for name, value in given.items())
    return [word for name, value in values for word in (f"--{name}", *map(str, value))]


def pipeline(place: Path, steps: dict[str, dict[str, object]]) -> None:
    """Each step in a fork: as in the real one, it goes on if the pipeline is killed."""
    modules = {"build": "precompute.build", "train": "student.train"}
    listed = [{"name": name, "run": modules[name], "flags": found} for name, found in steps.items()]
    text = yaml.safe_dump({"out": str(place / "out"), "steps": listed}, sort_keys=False)
    file = place / f"steps-{os.getpid()}" / "steps.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    with mock.patch("shards.pipeline.__main__.run_to_end", in_a_fork):
        if code := run_pipeline(file):
            raise CacheConflict(f"a step ended with exit code {code}")


def in_a_fork(step, *, quiet: bool = False) -> int:
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        {"precompute.build": build, "student.train": train}[step.module](step.words()[3:])
        code = 0
    except AlignDistilError as exc:
        print(f"refused {time.monotonic()} {exc}", flush=True)
        code = 2
    finally:
        os._exit(code)


def until_done(command: Callable[[], None], *, lenient: bool) -> None:
    """lenient: the folder is removed now and then, which may give any error."""
    while True:
        begun = time.monotonic()
        try:
            command()
        except CacheConflict as exc:
            print(f"refused {begun} {exc}", flush=True)
        except (AlignDistilError, OSError):
            if not lenient:
                raise
        else:
            return
        time.sleep(PAUSE)


def start_server(place: Path) -> tuple[int, dict[str, str]]:
    """An S3 server in a process of its own; how to reach it. Its first bucket is bucket-0."""

    def serve() -> None:
        from object_server import ObjectServer

        server = ObjectServer()
        server.new_bucket()
        (place / "server.tmp").write_text(json.dumps(server.environment))
        (place / "server.tmp").rename(place / "server.json")
        signal.pause()

    pid, give_up = forked.start(serve, place / "server"), time.monotonic() + SECONDS
    while not (place / "server.json").exists():
        assert time.monotonic() < give_up, read(place / "server.err")
        time.sleep(PAUSE)
    return pid, json.loads((place / "server.json").read_text())


def fetch_all(environment: dict[str, str], folder: Path) -> None:
    os.environ.update(environment)
    from shards.places.stores import store_of
    from shards.places.url import parse_url

    store = store_of(parse_url("s3://bucket-0/out"))
    folder.mkdir()
    for file in store.sizes():
        (folder / file).touch()
        store.fetch(file, folder / file)


# ---- the driver


def disturb(processes: Sequence[int], rng: Random, place: Path, *, removes: bool) -> dict[int, int | str | None]:
    """Kill or suspend all but one at random moments, or remove their folder; then wait. Process -> exit code."""
    ends: dict[int, int | str | None] = {}
    for pid in processes[1:]:
        time.sleep(rng.random() * 0.8)
        match rng.choice(("kill", "suspend", "nothing")):
            case "kill":
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                ends[pid] = "killed"
            case "suspend":
                os.kill(pid, signal.SIGSTOP)
                time.sleep(rng.random() * 0.5)
                os.kill(pid, signal.SIGCONT)
    if removes:
        shutil.rmtree(place / "out", ignore_errors=True)
    for number, pid in enumerate(processes):
        if pid not in ends:
            ends[pid] = forked.wait(pid, place / f"log-{number}", SECONDS).code
    return ends


def end_all(pid: int) -> None:
    """End what is left of a process's group, such as a step of a pipeline that was killed."""
    try:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def judged(place: Path, kind: str, processes: Sequence[int], ends: dict[int, int | str | None]) -> Iterator[str]:
    """What is wrong with how the processes ended, and with what they were told."""
    for number, pid in enumerate(processes):
        if ends[pid] is None:
            yield f"no end of process {pid} within {SECONDS} s"
        elif ends[pid] not in (0, "killed"):
            yield f"process {pid} ended with {ends[pid]}: {read(place / f'log-{number}.err')[-300:]!r}"
        for line in read(place / f"log-{number}.out").splitlines():
            word, _, rest = line.partition(" ")
            message = rest.partition(" ")[2]
            if word == "refused" and not is_good(message, kind, pid, processes):
                yield f"expected to hear who is at work, got: {message}"


def is_good(message: str, kind: str, pid: int, processes: Sequence[int]) -> bool:
    if kind == "pipeline" and message.startswith("a step ended"):  # which has said why
        return True
    if "removed" in kind and "the lock of this command" in message:
        return True
    found = REFUSAL.match(message)
    if found is None:
        return False
    return kind == "pipeline" or (int(found[2]) in processes and int(found[2]) != pid)


def content(folder: Path) -> dict[str, bytes]:
    """File -> bytes: all of a cache or of samples, the weights of a student."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    weights = {name: path for name, path in found.items() if Path(name).name == WEIGHTS}
    caches = {name: path for name, path in found.items() if not any(p in name for p in NO_CACHE)}
    if weights:  # a student, or a pipeline
        caches = {name: path for name, path in caches.items() if name.startswith("shards/")}
    return {name: path.read_bytes() for name, path in (weights | caches).items() if name != "shards/provenance.json"}


NO_CACHE = ("checkpoint-", "student/", "pipeline.json")


def differs(folder: Path, expected: dict[str, bytes]) -> Iterator[str]:
    found = content(folder)
    if missing := expected.keys() ^ found.keys():
        yield f"expected the files {sorted(expected)}, got these only on one side: {sorted(missing)}"
    for name in expected.keys() & found.keys():
        if expected[name] != found[name]:
            yield f"{name}: expected the bytes of one process alone, got others"
    if any(LOCK_FILE in name or "aligndistil-lock" in name for name in found):
        yield "expected no lock file at the end"

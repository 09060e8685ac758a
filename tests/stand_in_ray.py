"""A stand-in for Ray, in this process: workers are plain objects, and a test says which calls end their worker."""

from types import SimpleNamespace


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class StandInRay:
    """machines: how many there are. A method that raises RayActorError has lost its worker, which starts again.

    names: of the calls, with `repeats` how often Ray itself begins each again. silent: methods of workers, (name,
    number), that never answer. asked: how often the machines were looked at.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayActorError=RayActorError, RayTaskError=RayTaskError)

    def __init__(self, machines=2):
        self.machines, self.killed, self.names, self.begun = machines, [], [], []
        self.repeats, self.silent, self.asked = {}, set(), 0

    def nodes(self):
        self.asked += 1
        return [{"Alive": True, "Resources": {"CPU": 1.0}}] * self.machines

    def available_resources(self):
        return {"CPU": 0.0}

    def get_runtime_context(self):
        return SimpleNamespace(get_session_name=lambda: "session")

    def remote(self, kind):
        return SimpleNamespace(options=lambda **flags: SimpleNamespace(remote=lambda *args: _Actor(self, kind(*args))))

    def wait(self, references, *, num_returns, timeout):
        answering = [reference for reference in references if reference in self.begun]
        assert answering, "this would wait for ever"
        first = min(answering, key=self.begun.index)
        first()
        return [first], references

    def get(self, reference):
        found = reference()
        if isinstance(found, RayError):
            raise found
        return found[0]

    def put(self, value):
        return value

    def kill(self, actor, *, no_restart=True):
        self.killed.append((actor, no_restart))


class _Actor:
    def __init__(self, ray, worker):
        self._ray, self._worker = ray, worker

    def __getattr__(self, name):
        def remote(flags):
            return lambda *args: self._call(name, {"name": name, "max_task_retries": 0} | flags, args)

        return SimpleNamespace(options=lambda **flags: SimpleNamespace(remote=remote(flags)), remote=remote({}))

    def _call(self, name, flags, args):
        self._ray.names.append(flags["name"])
        self._ray.repeats[flags["name"]] = flags["max_task_retries"]
        answers = []

        def reference():
            if not answers:
                try:
                    answers.append((getattr(self._worker, name)(*args),))
                except RayError as exc:
                    answers.append(exc)
            return answers[0]

        if (name, getattr(self._worker, "number", None)) not in self._ray.silent:
            self._ray.begun.append(reference)
        return reference

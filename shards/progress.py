"""progress: how far something is and how long it will take: a bar on a terminal, else a line every half minute.

A bar is tqdm's, also in a notebook. Without a terminal (a pipe, a file, a job's log) nothing is drawn over: work that
takes longer than FIRST_SECONDS says a line then and every LINE_SECONDS, with share, rate and time left, and a last one.
Both are silent with --quiet (`shards.say`), and on all processes of a launcher but the first.
"""

import contextlib
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tqdm import TqdmWarning

from shards.cli.text import duration, plural
from shards.say import at_level, logger, speaks

FIRST_SECONDS, LINE_SECONDS = 10.0, 30.0
"""Seconds before the first line, and between lines, where there is no terminal."""
QUIET_SECONDS = 2.0
"""Seconds before the bar of brief work appears on a terminal."""
SMOOTHING = 0.05
"""Of tqdm's rate: batches differ in length, so the last few say little."""

HUB_BARS, DATASETS_BARS = "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"


def progress(
    iterable: Iterable | None = None,
    desc: str = "",
    *,
    total: float | None = None,
    unit: str = "it",
    initial: float = 0,
    brief: bool = False,
    disable: bool = False,
) -> Any:
    """Iterate over something, or count with `update`, and show how far it is. Used as tqdm is, with `with` too.

    unit      what is counted; B stands for bytes
    brief     it usually takes no time: on a terminal the bar comes after QUIET_SECONDS, and goes at the end
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets has a bar of letters
        from tqdm.auto import tqdm

    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    shown = speaks() and not disable and is_first()
    if shown and not draws():
        return Lines(iterable, desc, total=total, unit=unit, initial=initial)
    late = {"delay": QUIET_SECONDS, "leave": False} if brief else {}
    # a step of a training grows by its parts, which have digits after the point
    given = {"unit": unit, "unit_scale": unit in ("B", "step"), "initial": initial, "smoothing": SMOOTHING}
    return tqdm(iterable, desc, total, disable=not shown, dynamic_ncols=True, **given, **late)


def is_first() -> bool:
    """Whether this is the first process of a launcher, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def draws() -> bool:
    """Whether there is something to draw a bar on: a terminal or a notebook."""
    return notebook() is not None or sys.stderr.isatty()


def notebook() -> Any:
    """The shell of the notebook that this process is the kernel of; None if it is not one."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


class Lines:
    """Progress as lines of a log. They come from a thread, so also if one step of the work takes long."""

    def __init__(
        self, iterable: Iterable | None, desc: str, *, total: float | None, unit: str, initial: float = 0
    ) -> None:
        self.desc, self.total, self.unit, self.n = desc, total, unit.strip(), initial
        self._iterable, self._initial = iterable, initial
        self._began, self._said = time.monotonic(), False
        self._note = ""
        self._next = self._began + FIRST_SECONDS
        self._ended = threading.Event()
        self._end = weakref.finalize(self, self._ended.set)
        threading.Thread(target=_say_lines, args=(weakref.ref(self), self._ended), daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        assert self._iterable is not None
        with self:
            for item in self._iterable:
                yield item
                self.n += 1

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0

    def refresh(self, *_: object, **__: object) -> None:
        """Wait again before the next line: the reader has just been told how far it is."""
        self._next = time.monotonic() + LINE_SECONDS

    @property
    def seconds_to_next(self) -> float:
        return self._next - time.monotonic()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """A few words for the end of the line."""
        self._note = text

    def close(self) -> None:
        """End the lines, with a last one if there were any."""
        if not self._ended.is_set():
            self._end()
            if self._said:
                logger("progress").info("%s", self.text(ended=True))

    def say(self) -> None:
        self._said = True
        self.refresh()
        logger("progress").info("%s", self.text())

    def text(self, *, ended: bool = False) -> str:
        """The line: share, count, rate, and how long it will take, or took."""
        seconds = time.monotonic() - self._began
        rate = (self.n - self._initial) / max(seconds, 1e-9)
        share = f"{min(1.0, self.n / self.total):.0%}, " if self.total else ""
        of = f" of {self._count(self.total)}" if self.total else ""
        counts = self.total or self.n > self._initial
        parts = [f"{share}{self._count(self.n)}{of} {self._unit(self.total or self.n)}".rstrip()] if counts else []
        if rate > 0:
            parts.append(f"{self._rate(rate)}")
        if ended:
            parts.append(f"took {duration(seconds)}")
        elif self.total and rate > 0:
            parts.append(f"{duration(max(0.0, self.total - self.n) / rate)} left")
        else:
            parts.append(f"{duration(seconds)} so far")
        return f"{self.desc}: {', '.join(filter(None, [*parts, self._note]))}"

    def _count(self, number: float) -> str:
        if self.unit == "B":
            return f"{number / 1e6:,.0f}"
        return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}"

    def _unit(self, number: float) -> str:
        if self.unit in ("it", ""):
            return ""
        return "MB" if self.unit == "B" else self.unit if number == 1 or self.unit == "tok" else plural(self.unit)

    def _rate(self, rate: float) -> str:
        if self.unit == "B":
            return f"{rate / 1e6:,.0f} MB/s"
        unit = "" if self.unit == "it" else self.unit
        each = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{each} {unit}/s" if rate >= 0.1 else f"{duration(1 / rate)} a {unit or 'step'}"


def _say_lines(lines: "weakref.ref[Lines]", ended: threading.Event) -> None:
    wait = FIRST_SECONDS
    while not ended.wait(wait):
        found = lines()
        if found is None:
            return
        if found.seconds_to_next <= 0:
            found.say()
        wait = max(found.seconds_to_next, LINE_SECONDS / 100)
        del found


@contextlib.contextmanager
def commanded(*, quiet: bool = False, level: int | None = None) -> Iterator[None]:
    """The time of a command: what is shown is what --quiet and a level leave, and no library's bar goes around it."""
    with at_level(quiet=quiet, level=level), contextlib.ExitStack() as stack:
        transformers = sys.modules.get("transformers.utils.logging")
        if transformers is not None:
            stack.callback(transformers.set_tqdm_hook, transformers.set_tqdm_hook(_instead))
        if not (speaks() and draws() and is_first()):
            _without_library_bars(stack)
        yield


def _instead(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Our progress for one of transformers' bars: `set_tqdm_hook`."""
    names = ("total", "desc", "unit", "initial", "disable")
    return progress(*args[:1], **{name: kwargs[name] for name in names if kwargs.get(name) is not None})


def _without_library_bars(stack: contextlib.ExitStack) -> None:
    """Switch off the bars of datasets and of the hub's client, which cannot be exchanged, in processes of ours too."""
    for variable, module in ((HUB_BARS, "huggingface_hub.utils"), (DATASETS_BARS, "datasets")):
        loaded = sys.modules.get(module)
        if loaded is None:  # they look at the environment when they are loaded
            if variable not in os.environ:
                os.environ[variable] = "1"
                stack.callback(os.environ.pop, variable, None)
        elif not loaded.are_progress_bars_disabled():
            loaded.disable_progress_bars()
            stack.callback(loaded.enable_progress_bars)

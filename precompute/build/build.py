"""The build from start to finish: find the inputs, load the models, plan, score, write, finish."""

import contextlib
from dataclasses import replace

import torch

from precompute.build.identity import read_earlier, with_sizes
from precompute.build.inputs import find_sources, probe, read_inputs
from precompute.build.options import BuildOptions
from precompute.build.steps import Build, Left, alone, begin_alone, recognised
from precompute.build.work.models import ModelWork
from precompute.feeding.budget import AUTO
from precompute.processes import Processes
from shards.cli.device import resolve_device
from shards.cli.space import require_writable
from shards.files import make_folder
from shards.format.manifest import Manifest
from shards.format.plan import Plan
from shards.places.out import Out, open_out


def build(options: BuildOptions) -> Manifest:
    """Build the cache of these options, finish a begun one, or recognise a finished one. Raises AlignDistilError."""
    if options.ray is not None:
        from precompute.build.on_ray import build_on_ray  # which imports this command's steps, and Ray

        return build_on_ray(options)
    place = open_out(options.out, options.cache_dir)
    with place.named(), contextlib.ExitStack() as stack:
        processes = replace(Processes.join(), said=place.said)
        processes.together(lambda: alone(place, stack) if processes.is_first else None)
        return _build(options, place, processes, stack)


def _build(options: BuildOptions, place: Out, processes: Processes, stack: contextlib.ExitStack) -> Manifest:
    """stack: closed when the build ends; the first process has its folder to itself until then."""
    device = processes.together(lambda: own_device(options.device, processes.local_rank))
    options = processes.together(lambda: with_sizes(options, place, device))
    sources = processes.together(lambda: find_sources(options, place, device, processes))
    processes.require_equal(sources.identity)
    begun = processes.together(lambda: read_earlier(place, sources.identity))
    if isinstance(begun, Manifest):
        return _already_built(place, begun, processes)
    processes.together(lambda: require_writable(place.folder, place.option))
    inputs = read_inputs(options, sources, processes)
    # before the models are loaded: one float32 body needs the memory of two in half precision
    exact = processes.together(lambda: probe(options, inputs) if processes.is_first and begun is None else None)
    rank = processes.local_rank
    work = processes.together(lambda: ModelWork.load(options, inputs, local_rank=rank, exact=exact))
    exact = None  # a gigabyte for a large vocabulary
    if options.batch_tokens == AUTO:
        found = processes.together(work.fitting_batch_tokens)
        work = work.with_batch_tokens(min(processes.gather(found)))
    make_folder(place.folder)
    processes.together(lambda: begin_alone(place, stack) if processes.is_first else None)
    earlier = processes.together(lambda: read_earlier(place, work.inputs.identity))  # a URL's may be another machine's
    if isinstance(earlier, Manifest):
        manifest = _already_built(place, earlier, processes)
    else:
        manifest = _run(work, Build(place=place, options=work.options, inputs=work.inputs), earlier, processes)
    if processes.is_first:
        place.clear()
    return manifest


def own_device(name: str, local_rank: int) -> torch.device:
    """This process's device, which is its current one from now on if it is a GPU. Raises OptionError."""
    device = resolve_device(torch, name, local_rank)
    if device.type == "cuda":  # else whatever names no device, in any library, would use the first GPU
        torch.cuda.set_device(device)
    return device


def _already_built(place: Out, manifest: Manifest, processes: Processes) -> Manifest:
    processes.together(lambda: recognised(place, manifest) if processes.is_first else None)
    return manifest


def _run(work: ModelWork, build: Build, earlier: Plan | None, processes: Processes) -> Manifest:
    """The finished cache's manifest. earlier: the plan of an interrupted build of the same inputs.

    The first process plans, announces and finishes; plan and manifest reach the others through their group, since a
    network file system may show a file late. Each process scores and writes its own shards.
    """

    def begin() -> tuple[Plan, Left]:
        plan = build.begin(work.threshold(), work.precision) if earlier is None else build.go_on(earlier)
        return plan, build.left(plan)

    def announce() -> None:
        build.warn(plan, left, staged=(shards.writers + 1) * processes.world_size)
        trial = work.trial(plan.log_threshold, compare=bool(left.todo))
        build.announce(plan, left, trial, processes=processes.world_size)

    plan, left = processes.first(begin)
    todo, there = ([number for number in numbers if processes.owns(number)] for numbers in left)
    shards = work.shards(build.place, plan, todo, there, processes=processes.world_size)
    processes.first(announce)
    parts = processes.gather(shards.run(show=processes.is_first))
    return processes.first(lambda: build.finish(plan, [found for found, _ in parts], [times for _, times in parts]))

"""Which teachers a cache serves, according to its plan."""

from shards.format.plan import Plan
from shards.teacher.spec import PRESETS, TeacherSpec


def served_presets(plan: Plan) -> dict[str, TeacherSpec]:
    """The presets that a cache serves with their defaults, by name, in the order of PRESETS."""
    return {name: spec for name, spec in PRESETS.items() if lacks(plan, spec) is None}


def lacks(plan: Plan, spec: TeacherSpec) -> str | None:
    """What a cache lacks for the teacher of `spec`, in words; None if it serves it."""
    return lacks_pair(plan, spec) or _lacks_strength(plan, spec)


def lacks_pair(plan: Plan, spec: TeacherSpec) -> str | None:
    """What it lacks for the anchor and the negative of `spec`, for any strength."""
    missing = [r for r in dict.fromkeys((spec.anchor, "dpo", spec.negative)) if r not in plan.roles]
    if missing:
        built = ", ".join(plan.roles)
        return f"a teacher with {spec} needs the model {missing[0]!r}, the cache was built with {built}"
    if spec.pair not in plan.pairs:
        served = ", ".join(map(str, plan.pairs))
        return (
            f"a teacher with {spec} needs the pair {spec.pair}, the cache serves {served}; "
            f"build another with --pairs {' '.join(map(str, (*plan.pairs, spec.pair)))}"
        )
    return None


def lacks_for_fit(plan: Plan, spec: TeacherSpec) -> str | None:
    """What it lacks to fit the learned strength of `spec`."""
    return lacks_pair(plan, spec) or _lacks_start(spec, plan)


def _lacks_strength(plan: Plan, spec: TeacherSpec) -> str | None:
    if spec.needs_fit:
        return f"a teacher with {spec} needs the two numbers of its strength; fit them with shards.preferences.fit"
    if spec.strength == "learned":
        return _lacks_start(spec, plan)
    name, value, highest = (
        ("gain", spec.gain, plan.nodes.gains[-1])
        if spec.strength == "adaptive"
        else ("strength beta / kl_coef", spec.constant_strength, plan.nodes.strengths[-1])
    )
    flag = "gain_nodes" if spec.strength == "adaptive" else "strength_nodes"
    return (
        f"expected a {name} of {highest:g} or less, got {value:g}; build another with --{flag} that reach it"
        if value > highest
        else _lacks_start(spec, plan)
    )


def _lacks_start(spec: TeacherSpec, plan: Plan) -> str | None:
    """The lowest strength must be within the nodes: a learned one is clipped at the last node, an adaptive one rises
    from there. A constant one has none."""
    adaptive = spec.strength == "adaptive"
    highest = plan.nodes.highest_start(spec.gain if adaptive else 0.0)
    if spec.strength == "constant" or spec.min_strength <= highest:
        return None
    how = f"with gain {spec.gain:g}" if adaptive else "of a learned strength"
    flags = "--gain_nodes and --strength_nodes" if adaptive else "--strength_nodes"
    return (
        f"expected a min_strength of {highest:.4g} or less {how}, got {spec.min_strength:g}; build another with "
        f"{flags} that reach it"
    )

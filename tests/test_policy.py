"""The method on policies small enough to enumerate: what the distilled objective is, and its trade-off."""

import itertools

import numpy as np
import pytest
import torch

from precompute.scoring.support import SupportRule, summarise
from shards import TeacherSpec
from shards.format.nodes import StrengthNodes
from shards.teacher.compose import compose

V, LENGTH = 5, 3
PREFIXES = [prefix for length in range(LENGTH) for prefix in itertools.product(range(V), repeat=length)]


def random_policy(seed, size=1.0):
    """prefix -> log-probs (V,): a different conditional after every prefix."""
    generator = torch.Generator().manual_seed(seed)
    return {p: (size * torch.randn(V, generator=generator, dtype=torch.float64)).log_softmax(-1) for p in PREFIXES}


def distilled(dpo, reference, spec):
    """prefix -> p* of our pipeline, with all tokens kept."""
    live = {
        role: torch.stack([policy[p] for p in PREFIXES]) for role, policy in (("dpo", dpo), ("reference", reference))
    }
    rule = SupportRule(lowest=V, highest=V, log_threshold=None)
    nodes = StrengthNodes()
    next_ids = torch.zeros(len(PREFIXES), dtype=torch.long)
    made = compose(summarise(live, next_ids, rule=rule, pairs=[spec.pair], nodes=nodes), spec, nodes)
    rows = torch.from_numpy(made.logprobs).reshape(-1, V)
    return dict(zip(PREFIXES, rows, strict=True))


def best_over_sequences(dpo, reference, strength):
    """prefix -> conditionals of the maximiser over whole sequences: p(y) proportional to ref(y) (dpo(y)/ref(y))^w."""
    weight = {}
    for sequence in itertools.product(range(V), repeat=LENGTH):
        steps = [(reference[sequence[:t]][v], dpo[sequence[:t]][v]) for t, v in enumerate(sequence)]
        weight[sequence] = sum(r + strength * (d - r) for r, d in steps)
    conditionals = {}
    for prefix in PREFIXES:
        mass = [
            torch.logsumexp(torch.stack([w for s, w in weight.items() if s[: len(prefix) + 1] == (*prefix, v)]), 0)
            for v in range(V)
        ]
        conditionals[prefix] = torch.stack(mass).log_softmax(-1)
    return conditionals


@pytest.fixture
def policies():
    return random_policy(1), random_policy(2)


def objective(policy_V, dpo_V, reference_V, spec):
    """E over the policy of beta log(dpo / ref), minus kl_coef KL(policy || ref), for one step."""
    p = policy_V.exp()
    return (p * spec.beta * (dpo_V - reference_V)).sum() - spec.kl_coef * (p * (policy_V - reference_V)).sum()


@pytest.mark.parametrize("kl_coef", [0.05, 0.1, 0.4])
def test_the_teacher_maximises_the_one_step_objective_after_every_prefix(policies, kl_coef):
    dpo, reference = policies
    spec = TeacherSpec.preset("linear", beta=0.1, kl_coef=kl_coef)
    teacher = distilled(dpo, reference, spec)
    generator = torch.Generator().manual_seed(3)
    for prefix in PREFIXES:
        best = objective(teacher[prefix], dpo[prefix], reference[prefix], spec)
        for size in (1e-3, 0.1, 3.0):
            noise = size * torch.randn(V, generator=generator, dtype=torch.float64)
            other = (teacher[prefix] + noise).log_softmax(-1)
            assert objective(other, dpo[prefix], reference[prefix], spec) < best


def test_the_objectives_gradient_is_minus_that_of_the_distillation_loss(policies):
    dpo, reference = policies
    spec = TeacherSpec.preset("linear", beta=0.1, kl_coef=0.04)
    teacher = distilled(dpo, reference, spec)
    student = {p: logits.clone().requires_grad_() for p, logits in random_policy(4).items()}
    for prefix in PREFIXES:
        logprobs = student[prefix].log_softmax(-1)
        gained = objective(logprobs, dpo[prefix], reference[prefix], spec)
        lost = spec.kl_coef * (logprobs.exp() * (logprobs - teacher[prefix])).sum()
        up, down = (torch.autograd.grad(x, student[prefix], retain_graph=True)[0] for x in (gained, lost))
        torch.testing.assert_close(up, -down, rtol=1e-9, atol=1e-12)


def largest_gap(one, other):
    return max(float((one[p].exp() - other[p].exp()).abs().max()) for p in PREFIXES)


def test_the_maximiser_over_whole_sequences_is_another_one(policies):
    dpo, reference = policies
    teacher = distilled(dpo, reference, TeacherSpec.preset("linear", beta=0.1, kl_coef=0.05))
    assert largest_gap(teacher, best_over_sequences(dpo, reference, 2.0)) > 0.05


def test_both_maximisers_are_one_at_strength_one(policies):
    dpo, reference = policies
    teacher = distilled(dpo, reference, TeacherSpec.preset("linear", beta=0.1, kl_coef=0.1))
    assert largest_gap(teacher, best_over_sequences(dpo, reference, 1.0)) < 1e-12


def test_both_maximisers_are_one_where_the_log_partition_does_not_depend_on_the_prefix():
    rng = np.random.default_rng(5)
    dpo_row, reference_row = random_policy(6)[()], random_policy(7)[()]
    order = {p: torch.from_numpy(rng.permutation(V)) for p in PREFIXES}
    dpo, reference = ({p: row[order[p]] for p in PREFIXES} for row in (dpo_row, reference_row))
    teacher = distilled(dpo, reference, TeacherSpec.preset("linear", beta=0.1, kl_coef=0.05))
    assert largest_gap(teacher, best_over_sequences(dpo, reference, 2.0)) < 1e-12

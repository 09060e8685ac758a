"""The tail between strength nodes: exact at nodes, within the bounds of convexity, refused outside."""

import numpy as np
import pytest

from shards.errors import OptionError
from shards.format.nodes import DEFAULT_GAIN_NODES, DEFAULT_STRENGTH_NODES, StrengthNodes, interpolate

N, TAIL_TOKENS = 300, 40


@pytest.fixture(scope="module")
def tails():
    """Nodes (N, J), a function, and its values at the nodes."""
    generator = np.random.default_rng(5)
    start = generator.normal(-8, 3, (N, TAIL_TOKENS))
    slope = generator.normal(0, 1, (N, TAIL_TOKENS)) * generator.choice([0.0, 0.1, 2.0], (N, 1))
    nodes_NJ = StrengthNodes().at(generator.choice([0.0, 1e-6, 0.02, 0.3, 2.0], N))

    def value(strength_N):
        return np.logaddexp.reduce(start + strength_N[:, None] * slope, axis=1)

    return nodes_NJ, value, np.stack([value(strength_N) for strength_N in nodes_NJ.T], axis=1)


def test_nodes_start_at_zero_and_increase_at_every_position():
    distance_N = np.array([0.0, 1e-9, 1e-4, 0.1, 0.1337, 1.0, 2.0])
    nodes_NJ = StrengthNodes().at(distance_N)
    assert nodes_NJ.dtype == np.float64
    assert np.all(nodes_NJ[:, 0] == 0)
    assert np.all(np.diff(nodes_NJ, axis=1) > 0)
    for gain, strength, nodes_N in zip(DEFAULT_GAIN_NODES, DEFAULT_STRENGTH_NODES, nodes_NJ.T, strict=True):
        if gain:
            np.testing.assert_array_equal(nodes_N, np.maximum(gain * distance_N + 1e-3, strength))


def test_every_served_strength_lies_inside_the_nodes():
    distance_N = np.linspace(0, 2, 50)
    nodes_NJ = StrengthNodes().at(distance_N)
    for strength_N in (30 * distance_N + 1e-3, np.full(50, 4.0), np.full(50, 1e-3)):
        assert np.all((nodes_NJ[:, 0] <= strength_N) & (strength_N <= nodes_NJ[:, -1]))


@pytest.mark.parametrize("gain", [0.0, 0.5, 2.0, 10.0, 29.0, 30.0])
@pytest.mark.parametrize(
    "nodes",
    [StrengthNodes(), StrengthNodes(gains=(0.0, 1.0, 30.0), strengths=(0.0, 50.0, 90.0))],
    ids=["default", "high"],
)
def test_the_highest_start_is_the_largest_that_stays_inside_the_nodes(nodes, gain):
    distance_N = np.linspace(0, 2, 20_001)
    last_N, start = nodes.at(distance_N)[:, -1], nodes.highest_start(gain)
    assert np.all(gain * distance_N + start <= last_N + 1e-12)
    assert np.any(gain * distance_N + start + 0.02 > last_N)


def test_at_a_node_estimate_and_bounds_are_the_stored_value(tails):
    nodes_NJ, _, values_NJ = tails
    for j in range(nodes_NJ.shape[1]):
        for found_N in interpolate(nodes_NJ, values_NJ, nodes_NJ[:, j]):
            np.testing.assert_array_equal(found_N, values_NJ[:, j])


def between(nodes_NJ, seed):
    generator = np.random.default_rng(seed)
    return generator.uniform(0, 1, len(nodes_NJ)) * nodes_NJ[:, -1]


@pytest.mark.parametrize("seed", range(5))
def test_between_nodes_the_truth_and_the_estimate_lie_inside_the_bounds(tails, seed):
    nodes_NJ, value, values_NJ = tails
    strength_N = between(nodes_NJ, seed)
    estimate_N, lower_N, upper_N = interpolate(nodes_NJ, values_NJ, strength_N)
    truth_N = value(strength_N)
    assert np.all(lower_N - 1e-9 <= truth_N)
    assert np.all(truth_N <= upper_N + 1e-9)
    assert np.all((lower_N <= estimate_N) & (estimate_N <= upper_N))


def test_the_estimate_is_much_closer_than_the_chord(tails):
    nodes_NJ, value, values_NJ = tails
    strength_N = between(nodes_NJ, 9)
    estimate_N, _, upper_N = interpolate(nodes_NJ, values_NJ, strength_N)
    truth_N = value(strength_N)
    assert np.abs(estimate_N - truth_N).mean() < 0.5 * np.abs(upper_N - truth_N).mean()


def test_a_straight_line_is_met_exactly_between_nodes(tails):
    nodes_NJ, _, _ = tails
    strength_N = between(nodes_NJ, 1)
    for found_N in interpolate(nodes_NJ, 3 * nodes_NJ - 5, strength_N):
        np.testing.assert_allclose(found_N, 3 * strength_N - 5, atol=1e-9)


def test_an_empty_tail_stays_empty_and_disturbs_no_other(tails):
    nodes_NJ, _, values_NJ = tails
    strength_N = between(nodes_NJ, 2)
    emptied_NJ = values_NJ.copy()
    emptied_NJ[::3] = -np.inf
    for before_N, after_N in zip(
        interpolate(nodes_NJ, values_NJ, strength_N), interpolate(nodes_NJ, emptied_NJ, strength_N), strict=True
    ):
        assert np.all(np.isneginf(after_N[::3]))
        np.testing.assert_array_equal(after_N[1::3], before_N[1::3])


def test_three_nodes_are_enough():
    nodes = StrengthNodes(gains=(0.0, 5.0, 10.0), strengths=(0.0, 1.0, 2.0))
    nodes_NJ = nodes.at(np.array([0.0, 1.0]))
    estimate_N, _, _ = interpolate(nodes_NJ, nodes_NJ**2, np.array([0.5, 6.0]))
    np.testing.assert_allclose(estimate_N, [0.25, 36.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"gains": (1.0, 2.0, 3.0)}, "gain_nodes"),
        ({"gains": (0.0, 2.0, 2.0)}, "gain_nodes"),
        ({"gains": (0.0, 1.0)}, "gain_nodes"),
        ({"gains": (0.0, 1.0, float("inf"))}, "gain_nodes"),
        ({"gains": (0.0, float("nan"), 3.0)}, "gain_nodes"),
        ({"gains": (0.0, 1.0, 2.0, 3.0)}, "gain_nodes and strength_nodes"),
        ({"strengths": (0.5, 1.0, 2.0)}, "strength_nodes"),
        ({"strengths": (0.0, 2.0, 1.0)}, "strength_nodes"),
        ({"strengths": (0.0, 1e-4, 1.0)}, "strength_nodes"),
    ],
)
def test_nodes_that_cannot_be_are_refused_by_name(changed, named):
    legal = {"gains": (0.0, 5.0, 10.0), "strengths": (0.0, 1.0, 2.0)}
    StrengthNodes(**legal)
    with pytest.raises(OptionError, match=f"^{named}: expected .*, got "):
        StrengthNodes(**{**legal, **changed})

"""Pruning, compaction and refitting: matrices small enough to check by hand, and properties."""

import numpy as np
import pytest
from conftest import draw_network, pruned_by, received
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import network_pruning
from network_pruning import (
    METHODS,
    compact,
    network_of,
    prune_neurons,
    prune_weights,
    refit,
    saliencies,
    sensitivities,
)

KERNEL = np.array(
    [
        [0.1, -5.0, 3.0, 0.0],
        [-0.2, 4.0, 0.3, 2.0],
    ],
    dtype=np.float32,
)  # the norms of its units are 0.22, 6.4, 3.01 and 2

WEIGHTS = st.floats(-(2.0**99), 2.0**99, width=32)
KERNELS = st.one_of(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=WEIGHTS),
    # few values, so many ties; of convolutions, too
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=4, max_side=6),
        elements=st.sampled_from([-1, 0, 1]),
    ),
)
SIZES = st.lists(st.integers(1, 12), min_size=3, max_size=6)
SPARSITIES = st.one_of(st.floats(0, 1), st.sampled_from([0, 0.25, 0.29, 0.5, 0.57, 0.9, 0.99, 1]))


def test_the_smallest_magnitudes_or_the_columns_of_smallest_l2_norm_go():
    np.testing.assert_array_equal(prune_weights(KERNEL, 0.5), [[0, -5, 3, 0], [0, 4, 0, 2]])
    neurons = np.array([[0, -5, 3, 0], [0, 4, 0.3, 0]], np.float32)
    np.testing.assert_array_equal(prune_neurons(KERNEL, 0.5), neurons)
    kernel = np.array([[3.0, 2], [0, 2]])  # L2 norms 3 and 2.8, L1 norms 3 and 4
    np.testing.assert_array_equal(prune_neurons(kernel, 0.5), [[3, 0], [0, 0]])


def test_of_equal_weights_or_neurons_the_first_go_first():
    ones = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(prune_weights(ones, 0.7), [[0] * 5, [0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(prune_neurons(ones, 0.6), [[0, 0, 0, 1, 1]] * 2)


@given(KERNELS, SPARSITIES)
def test_exactly_the_requested_weights_go_and_the_kept_ones_are_no_smaller(kernel, sparsity):
    pruned = prune_weights(kernel, sparsity)
    kept = kernel[pruned != 0]
    gone = np.sort(np.abs(kernel), axis=None)[: round(sparsity * kernel.size)]
    assert np.count_nonzero(kernel) - kept.size == np.count_nonzero(gone)
    assert kept.size == 0 or gone.size == 0 or np.abs(kept).min() >= gone.max()
    np.testing.assert_array_equal(kept, pruned[pruned != 0])


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
@given(kernel=KERNELS, sparsity=SPARSITIES)
def test_the_result_is_a_copy_of_the_same_shape_and_type(prune, kernel, sparsity):
    before = kernel.copy()
    pruned = prune(kernel, sparsity)
    assert pruned.shape == kernel.shape and pruned.dtype == kernel.dtype
    assert not np.shares_memory(pruned, kernel)
    np.testing.assert_array_equal(kernel, before)
    np.testing.assert_array_equal(prune(kernel, 0), kernel)
    assert not prune(kernel, 1).any()


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
def test_what_is_no_fraction_or_not_finite_is_refused(prune):
    for sparsity in (-0.1, 1.0001, 90, float("nan")):
        with pytest.raises(ValueError, match=r"sparsity is a fraction in \[0, 1\], not"):
            prune(KERNEL, sparsity)
    with pytest.raises(ValueError, match="weights must not be NaN"):
        prune(np.array([[1.0, np.nan]]), 0.5)
    with pytest.raises(ValueError, match="must be finite and of moderate size"):
        refit(KERNEL, np.ones((3, 2)), np.full((3, 4), np.inf))


LAYER_BY_LAYER = [
    name for name in METHODS if name not in ("dense", "matched_weight", "gradual_weight")
]


@pytest.mark.parametrize("method", LAYER_BY_LAYER)
@given(kernel=KERNELS, levels=st.lists(SPARSITIES, min_size=2, max_size=2))
def test_the_exact_number_goes_and_at_a_higher_sparsity_a_superset(method, kernel, levels):
    kernel = np.where(kernel == 0, np.float32(1), kernel).reshape(-1, kernel.shape[-1])
    network = network_of([kernel, np.ones((kernel.shape[1], 2), np.float32), np.zeros(2, "f")])
    lower, higher = (hidden[0] == 0 for hidden in pruned_by(method, network, sorted(levels)))
    assert not (lower & ~higher).any()
    if method.endswith("neuron"):
        assert (higher.any(axis=0) == higher.all(axis=0)).all()
        higher = higher[0]
    assert higher.sum() == round(max(levels) * higher.size)


@given(sizes=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_matched_pruning_keeps_as_many_as_neuron_pruning_leaves_live(sizes, sparsity, seed):
    network = draw_network(sizes, np.random.default_rng(seed))
    [neurons], [matched] = (
        pruned_by(method, network, [sparsity]) for method in ("neuron", "matched_weight")
    )
    live = compact([*neurons, network.output])[:-1]
    assert list(map(np.count_nonzero, matched)) == list(map(np.count_nonzero, live))
    for kernel, pruned in zip(network.hidden, matched):
        gone = np.abs(kernel[pruned == 0])
        assert np.abs(pruned[pruned != 0]).min(initial=np.inf) >= gone.max(initial=0)


def test_saliency_is_magnitude_times_input_norm_times_the_response_of_the_logit():
    kernel = np.array([[1.0, -1.0], [-2.0, 1.0]], np.float32)
    network = network_of([kernel, np.array([[2.0], [-3.0]], np.float32), np.zeros(1, np.float32)])
    inputs = received(network, np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 1.0]], np.float32))
    # the units output 1, 0, 2 and 0, 1, 0; a unit that outputs 0 passes no change on
    units = np.array([2 * np.sqrt(2), 3])
    np.testing.assert_allclose(sensitivities(network, inputs), [units], rtol=1e-6)
    norms = np.sqrt([[17], [2]])
    np.testing.assert_allclose(saliencies(network, inputs)[0], abs(kernel) * norms * units, 1e-6)
    # of the weights 11.7, 12.4, 8.0 and 4.2; of the units sqrt(5) * 2.8 and 3
    [weights] = METHODS["saliency_weight"](network, inputs, [0.5], None)
    np.testing.assert_array_equal(weights[0], [[1, -1], [0, 0]])
    [neurons] = METHODS["saliency_neuron"](network, inputs, [0.5], None)
    np.testing.assert_array_equal(neurons[0], [[1, 0], [-2, 0]])


def test_sensitivity_by_random_signs_is_about_that_of_all_logits():
    """The largest error of this network's units is 0.055."""
    network = draw_network([30, 20, 15, 10], np.random.default_rng(0))
    inputs = received(network, np.random.default_rng(100).normal(size=(2000, 30)).astype("f"))
    squares = [0, 0]
    for logit in range(10):
        of_one = network._replace(output=network.output[:, [logit]], bias=np.zeros(1))
        for layer, norms in enumerate(sensitivities(of_one, inputs)):
            squares[layer] = squares[layer] + norms**2
    for norms, exact in zip(sensitivities(network, inputs), squares):
        np.testing.assert_allclose(norms, np.sqrt(exact), rtol=0.2)


def test_weights_of_all_layers_are_ranked_together_and_those_that_are_gone_go_first():
    network = draw_network([5, 4, 3, 2], np.random.default_rng(0))
    network.hidden[0][:3] = 0  # 12 of 32
    images = np.random.default_rng(1).random((50, 5), np.float32)
    images[:, 3] = 0  # live weights on it have a saliency of 0: 4 more
    scores = saliencies(network, received(network, images))
    for gone in (12, 16, 24, 31, 32):
        pruned = network_pruning.prune_together(network, images, gone / 32)
        assert sum(np.count_nonzero(kernel == 0) for kernel in pruned) == gone
        assert not pruned[0][:3].any()
        kept = [score[kernel != 0] for score, kernel in zip(scores, pruned)]
        lost = [score[kernel == 0] for score, kernel in zip(scores, pruned)]
        assert np.concatenate(kept).min(initial=np.inf) >= np.concatenate(lost).max()


def test_gradual_pruning_refits_after_each_fifth_and_shares_its_rounds():
    network = draw_network([30, 20, 10, 5], np.random.default_rng(0))
    images = np.random.default_rng(0).random((9, 30), np.float32)  # as `pruned_by` has them
    targets = [x @ kernel for x, kernel in zip(received(network, images), network.hidden)]
    small = network_pruning.prune_together(network, images, 0.1)
    # the first round, by hand
    hidden = network_pruning.prune_together(network, images, 0.2)
    fitted = tuple(network_pruning.refit_layers(hidden, images, targets, 5))
    second = network_pruning.prune_together(network._replace(hidden=fitted), images, 0.3)
    levels = [0.1, 0.2, 0.3, 0.9, 1]
    found = pruned_by("gradual_weight", network, levels)
    for expected, kernels in zip((small, hidden, second), found):
        for one, other in zip(expected, kernels):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    for level, kernels in zip(levels, found):
        assert sum(map(np.count_nonzero, kernels)) == round((1 - level) * 800)
    [alone] = pruned_by("gradual_weight", network, [0.9])
    for one, other in zip(alone, found[3]):
        np.testing.assert_array_equal(one, other)


def outputs(kernels, inputs):
    """What a network of ReLU layers computes."""
    for kernel in kernels[:-1]:
        inputs = np.maximum(inputs @ kernel, 0)
    return inputs @ kernels[-1]


def test_a_unit_without_inputs_or_without_outputs_is_deleted():
    first = np.array([[1.0, 0.0, 2.0, 3.0], [4.0, 0.0, 5.0, 6.0]])  # unit 1 has no inputs
    second = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [5.0, 6.0]])  # unit 2 no outputs
    small = compact([first, second])
    np.testing.assert_array_equal(small[0], [[1, 3], [4, 6]])
    np.testing.assert_array_equal(small[1], [[1, 2], [5, 6]])
    inputs, hidden, outputs = map(list, network_pruning.live_units([first, second]))
    assert inputs == outputs == [0, 1] and hidden == [0, 3]


def test_where_no_path_is_left_every_layer_keeps_a_unit_without_weights():
    for cut in range(3):
        kernels = [np.ones((3, 4)), np.ones((4, 5)), np.ones((5, 2))]
        kernels[cut] *= 0
        small = compact(kernels)
        assert [kernel.shape for kernel in small] == [(3, 1), (1, 1), (1, 2)]
        assert not any(kernel.any() for kernel in small)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=50)
@given(sizes=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_compacted_networks_compute_the_same_and_are_minimal(method, sizes, sparsity, seed):
    network = draw_network(sizes, np.random.default_rng(seed))
    [hidden] = pruned_by(method, network, [sparsity], seed)
    kernels = [*hidden, network.output]
    small = compact(kernels)
    assert [kernel.shape for kernel in compact(small)] == [kernel.shape for kernel in small]
    inputs = np.random.default_rng(seed).normal(size=(7, sizes[0])).astype(np.float32)
    expected = outputs(kernels, inputs)
    tolerance = 1e-5 * (1 + np.abs(expected).max())  # rounding of float32
    np.testing.assert_allclose(outputs(small, inputs), expected, rtol=1e-4, atol=tolerance)


RIDGE = 0.01


def layer(seed=0, n=30, fan_in=8, units=5):
    """A kernel, ReLU-like inputs of which one is always 0, and targets, in float64."""
    rng = np.random.default_rng(seed)
    inputs = np.maximum(rng.normal(size=(n, fan_in)), 0)
    inputs[:, 3] = 0
    return rng.normal(size=(fan_in, units)), inputs, rng.normal(size=(n, units))


def solved(kernel, inputs, targets):
    """The same as `refit` by a direct solution for each unit."""
    penalty = RIDGE * np.sum(inputs**2) / np.count_nonzero(inputs.any(axis=0))
    result = kernel.copy()
    for unit in range(kernel.shape[1]):
        kept = np.flatnonzero(kernel[:, unit])
        x = inputs[:, kept]
        errors = targets[:, unit] - x @ kernel[kept, unit]
        normal = x.T @ x + penalty * np.eye(len(kept))
        result[kept, unit] += np.linalg.solve(normal, x.T @ errors)
    return result


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
@pytest.mark.parametrize("sparsity", [0, 0.5, 1])
def test_refit_is_the_least_squares_solution_on_the_weights_that_are_left(prune, sparsity):
    kernel, inputs, targets = layer()
    pruned = prune(kernel, sparsity)
    result = refit(pruned, inputs, targets, steps=50, ridge=RIDGE)
    np.testing.assert_allclose(result, solved(pruned, inputs, targets), atol=1e-12)
    np.testing.assert_array_equal(result == 0, pruned == 0)


def test_refit_changes_neither_what_computes_its_targets_nor_weights_on_inputs_always_0():
    kernel, inputs, targets = (array.astype(np.float32) for array in layer())
    np.testing.assert_array_equal(refit(kernel, inputs, inputs @ kernel), kernel)
    result = refit(kernel, inputs, targets)
    np.testing.assert_array_equal(result[3], kernel[3])
    assert (result != kernel).sum() == kernel.size - kernel.shape[1]


@given(seed=st.integers(0, 999), ridge=st.sampled_from([1e-8, 0.01]), kind=st.sampled_from("fd"))
def test_refit_gets_no_worse_however_many_steps_it_takes(seed, ridge, kind):
    """Also with fewer samples than inputs, inputs that are the same, and of other magnitudes."""
    rng = np.random.default_rng(seed)
    n, fan_in = rng.integers(1, 30, size=2)
    kernel, inputs, targets = (array.astype(kind) for array in layer(seed, n, max(fan_in, 4)))
    inputs[:, 0] = inputs[:, -1]
    inputs *= (10.0 ** rng.integers(-3, 4, inputs.shape[1])).astype(kind)
    kernel = prune_weights(kernel, rng.random())
    before = np.sum((inputs @ kernel - targets) ** 2, axis=0)
    for steps in (10, 300):
        after = np.sum((inputs @ refit(kernel, inputs, targets, steps, ridge) - targets) ** 2, 0)
        assert (after <= 1.001 * before).all()

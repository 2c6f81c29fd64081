"""Pruning, compaction and refitting: matrices small enough to check by hand, and properties."""

import numpy as np
import pytest
from conftest import draw_network, flat, pruned_by, received
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import network_pruning
from network_pruning import METHODS, compact, network_of, prune_neurons, prune_weights, refit

KERNEL = np.array([[0.1, -5, 3, 0], [-0.2, 4, 0.3, 2]], np.float32)
WEIGHTS = st.one_of(st.floats(-(2.0**40), 2.0**40, width=32), st.sampled_from([-1, 1]))  # ties
KERNELS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=WEIGHTS)
SIZES = st.lists(st.integers(1, 12), min_size=3, max_size=6)
SPARSITIES = st.one_of(st.floats(0, 1), st.sampled_from([0, 0.25, 0.29, 0.5, 0.57, 0.9, 0.99, 1]))


def test_the_smallest_magnitudes_or_the_columns_of_smallest_l2_norm_go():
    for shape in ((2, 4), (1, 2, 1, 4)):  # of a convolution, too
        kernel = KERNEL.reshape(shape)
        weights = np.reshape([0, -5, 3, 0, 0, 4, 0, 2], shape)
        np.testing.assert_array_equal(prune_weights(kernel, 0.5), weights)
        neurons = kernel * np.array([0, 1, 1, 0], np.float32)  # norms of 0.22, 6.4, 3.01 and 2
        np.testing.assert_array_equal(prune_neurons(kernel, 0.5), neurons)
    kernel = np.array([[3.0, 2], [0, 2]])  # L2 norms 3 and 2.8, L1 norms 3 and 4
    np.testing.assert_array_equal(prune_neurons(kernel, 0.5), [[3, 0], [0, 0]])
    # of equal ones the first
    ones = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(prune_weights(ones, 0.7), [[0] * 5, [0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(prune_neurons(ones, 0.6), [[0, 0, 0, 1, 1]] * 2)


def test_what_is_no_fraction_or_not_finite_is_refused():
    for prune in (prune_weights, prune_neurons):
        for sparsity in (-0.1, 1.0001, 90, float("nan")):
            with pytest.raises(ValueError, match=r"sparsity is a fraction in \[0, 1\], not"):
                prune(KERNEL, sparsity)
        with pytest.raises(ValueError, match="weights must not be NaN"):
            prune(np.array([[1.0, np.nan]]), 0.5)
    with pytest.raises(ValueError, match="must be finite and of moderate size"):
        refit(KERNEL, np.ones((3, 2)), np.full((3, 4), np.inf))


LAYER_BY_LAYER = set(METHODS) - {"dense", "matched_weight", "gradual_weight"}


@pytest.mark.parametrize("method", sorted(LAYER_BY_LAYER))
@given(kernel=KERNELS, levels=st.lists(SPARSITIES, min_size=2, max_size=2))
def test_the_exact_number_goes_and_at_a_higher_sparsity_a_superset(method, kernel, levels):
    kernel[kernel == 0] = 1
    kernel.flags.writeable = False
    network = network_of([kernel, np.ones((kernel.shape[1], 2), np.float32), np.zeros(2, "f")])
    [lower], [higher] = pruned_by(method, network, sorted(levels))
    assert higher.dtype == kernel.dtype and not np.shares_memory(higher, kernel)
    np.testing.assert_array_equal(higher[higher != 0], kernel[higher != 0])
    gone = higher == 0
    assert not ((lower == 0) & ~gone).any()
    if method == "weight":
        assert abs(kernel[~gone]).min(initial=np.inf) >= abs(kernel[gone]).max(initial=0)
    if method.endswith("neuron"):
        assert (gone.any(axis=0) == gone.all(axis=0)).all()
        gone = gone[0]
    assert gone.sum() == round(max(levels) * gone.size)


@given(sizes=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_matched_pruning_keeps_as_many_as_neuron_pruning_leaves_live(sizes, sparsity, seed):
    network = draw_network(sizes, np.random.default_rng(seed))
    [neurons] = pruned_by("neuron", network, [sparsity])
    [matched] = pruned_by("matched_weight", network, [sparsity])
    live = compact([*neurons, network.output])[:-1]
    assert list(map(np.count_nonzero, matched)) == list(map(np.count_nonzero, live))
    for kernel, pruned in zip(network.hidden, matched):
        np.testing.assert_array_equal(pruned, prune_weights(kernel, np.mean(pruned == 0)))


def test_saliency_is_magnitude_times_input_norm_times_the_response_of_the_logit():
    kernel = np.array([[1.0, -1.0], [-2.0, 1.0]], np.float32)
    network = network_of([kernel, np.array([[2.0], [-3.0]], np.float32), np.zeros(1, np.float32)])
    inputs = received(network, np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 1.0]], np.float32))
    # the units output 1, 0, 2 and 0, 1, 0; a unit that outputs 0 passes no change on
    units = np.array([2 * np.sqrt(2), 3])
    np.testing.assert_allclose(network_pruning.sensitivities(network, inputs), [units], rtol=1e-6)
    expected = abs(kernel) * np.sqrt([[17], [2]]) * units
    np.testing.assert_allclose(network_pruning.saliencies(network, inputs), [expected], rtol=1e-6)
    # of the weights 11.7, 12.4, 8.0 and 4.2; of the units sqrt(5) * 2.8 and 3
    [weights] = METHODS["saliency_weight"](network, inputs, [0.5], None)
    np.testing.assert_array_equal(weights[0], [[1, -1], [0, 0]])
    [neurons] = METHODS["saliency_neuron"](network, inputs, [0.5], None)
    np.testing.assert_array_equal(neurons[0], [[1, 0], [-2, 0]])


def test_sensitivity_by_random_signs_is_about_that_of_all_logits():
    """The largest error of this network's units is 0.055."""
    network = draw_network([30, 20, 15, 10], np.random.default_rng(0))
    inputs = received(network, np.random.default_rng(100).normal(size=(2000, 30)).astype("f"))
    single = [network._replace(output=o[:, None], bias=np.zeros(1)) for o in network.output.T]
    exact = zip(*(network_pruning.sensitivities(each, inputs) for each in single))
    for norms, of_logits in zip(network_pruning.sensitivities(network, inputs), exact):
        np.testing.assert_allclose(norms, np.linalg.norm(of_logits, axis=0), rtol=0.2)


def test_weights_of_all_layers_are_ranked_together_and_those_that_are_gone_go_first():
    network = draw_network([5, 4, 3, 2], np.random.default_rng(0))
    network.hidden[0][2:] = 0  # 12 of 32
    images = np.random.default_rng(1).random((50, 5), np.float32)
    images[:, 0] = 0  # live weights on it have a saliency of 0: 4 more
    saliencies = network_pruning.saliencies(network, received(network, images))
    scores = flat(saliencies)
    for gone in (12, 16, 24, 31, 32):
        pruned = network_pruning.prune_together(network.hidden, saliencies, gone / 32)
        kept = flat(pruned) != 0
        assert kept.sum() == 32 - gone and not pruned[0][2:].any()
        assert scores[kept].min(initial=np.inf) >= scores[~kept].max()


def test_gradual_pruning_refits_after_each_fifth_and_shares_its_rounds():
    network = draw_network([30, 20, 10, 5], np.random.default_rng(0))
    images = np.random.default_rng(0).random((9, 30), np.float32)  # as `pruned_by` has them
    pairs = zip(received(network, images), network.hidden)
    targets = [network_pruning.tf.matmul(x, kernel).numpy() for x, kernel in pairs]

    def prune(network, sparsity):
        scores = network_pruning.saliencies(network, received(network, images))
        return network_pruning.prune_together(network.hidden, scores, sparsity)

    # the first round, by hand
    hidden = prune(network, 0.2)
    fitted = network._replace(hidden=network_pruning.refit_layers(hidden, images, targets, 5))
    expected = [prune(network, 0.1), hidden, prune(fitted, 0.3)]
    levels = [0.1, 0.2, 0.3, 0.9, 1]
    found = pruned_by("gradual_weight", network, levels)
    for one, other in zip(expected, found):
        np.testing.assert_array_equal(flat(one), flat(other))
    for level, kernels in zip(levels, found):
        assert np.count_nonzero(flat(kernels)) == round((1 - level) * 800)
    [alone] = pruned_by("gradual_weight", network, [0.9])
    np.testing.assert_array_equal(flat(alone), flat(found[3]))


def test_a_unit_without_inputs_or_outputs_is_deleted_but_the_last_of_a_layer_without_any_path():
    first = np.array([[1.0, 0.0, 2.0, 3.0], [4.0, 0.0, 5.0, 6.0]])  # unit 1 has no inputs
    second = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [5.0, 6.0]])  # unit 2 no outputs
    small = compact([first, second])
    np.testing.assert_array_equal(small[0], [[1, 3], [4, 6]])
    np.testing.assert_array_equal(small[1], [[1, 2], [5, 6]])
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
    images = np.random.default_rng(seed).normal(size=(7, sizes[0])).astype(np.float32)
    expected = received(network_of([*kernels, None]), images)[-1] @ kernels[-1]
    computed = received(network_of([*small, None]), images)[-1] @ small[-1]
    tolerance = 1e-5 * (1 + np.abs(expected).max())  # rounding of float32
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=tolerance)


def layer(seed=0, n=30, fan_in=8, units=5):
    """A kernel, ReLU-like inputs of which one is always 0, and targets, in float64."""
    rng = np.random.default_rng(seed)
    inputs = np.maximum(rng.normal(size=(n, fan_in)), 0)
    inputs[:, 3] = 0
    return rng.normal(size=(fan_in, units)), inputs, rng.normal(size=(n, units))


@pytest.mark.parametrize("sparsity", [0, 0.5, 1])
def test_refit_is_the_least_squares_solution_on_the_weights_that_are_left(sparsity):
    kernel, inputs, targets = layer()
    pruned = prune_weights(kernel, sparsity)
    result = refit(pruned, inputs, targets, steps=50, ridge=0.01)
    penalty = 0.01 * np.sum(inputs**2) / 7  # inputs that are not always 0
    gradient = inputs.T @ (inputs @ result - targets) + penalty * (result - pruned)
    np.testing.assert_allclose(gradient[pruned != 0], 0, atol=1e-11)
    np.testing.assert_array_equal(result == 0, pruned == 0)
    np.testing.assert_array_equal(result[3], pruned[3])  # on the input that is always 0
    np.testing.assert_array_equal(refit(pruned, inputs, inputs @ pruned), pruned)


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

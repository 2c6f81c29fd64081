"""The pruning rules, on matrices small enough to check by hand and as properties."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from network_pruning import METHODS, prune_neurons, prune_weights, rank_for, zero_lowest

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
    # few values, so many ties
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=4, max_side=6),
        elements=st.sampled_from([-1, 0, 1]),
    ),
)
SPARSITIES = st.one_of(st.floats(0, 1), st.sampled_from([0, 0.25, 0.29, 0.5, 0.57, 0.9, 0.99, 1]))


def test_weight_pruning_removes_the_smallest_magnitudes():
    expected = [[0, -5, 3, 0], [0, 4, 0, 2]]
    np.testing.assert_array_equal(prune_weights(KERNEL, 0.5), expected)


def test_neuron_pruning_removes_the_columns_of_smallest_norm():
    expected = np.array([[0, -5, 3, 0], [0, 4, 0.3, 0]], np.float32)
    np.testing.assert_array_equal(prune_neurons(KERNEL, 0.5), expected)


def test_a_neuron_counts_by_its_l2_norm_not_by_its_sum_or_its_largest_weight():
    kernel = np.array([[3, 2.5], [0, 2.5]])  # L2 3 and 3.54, L1 3 and 5, maximum 3 and 2.5
    np.testing.assert_array_equal(prune_neurons(kernel, 0.5), [[0, 2.5], [0, 2.5]])
    kernel = np.array([[3.0, 2.0], [0.0, 2.0]])  # L2 3 and 2.83, L1 3 and 4
    np.testing.assert_array_equal(prune_neurons(kernel, 0.5), [[3, 0], [0, 0]])


def test_of_equal_weights_the_first_go_first():
    ones = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(prune_weights(ones, 0.7), [[0] * 5, [0, 0, 1, 1, 1]])


def test_of_equal_neurons_the_first_go_first():
    ones = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(prune_neurons(ones, 0.6), [[0, 0, 0, 1, 1]] * 2)


def test_norms_neither_overflow_nor_vanish_in_float32():
    kernel = np.array([[3e30, 2e30, 1e-30, 2e-30]], np.float32)
    np.testing.assert_array_equal(prune_neurons(kernel, 0.25) == 0, [[False, False, True, False]])
    np.testing.assert_array_equal(prune_neurons(kernel, 0.75) == 0, [[False, True, True, True]])


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [
        (100, 0.29, 29),
        (100, 0.57, 57),
        (200, 0.58, 116),
        (4, 0.125, 0),
        (4, 0.375, 2),
        (1, 0.99, 1),
    ],
)
def test_the_count_is_the_rounded_product(size, sparsity, count):
    # int() would lose one of the first three to binary fractions; halves go to the even number
    kernel = np.arange(1, size + 1, dtype=np.float32).reshape(1, size)
    assert np.count_nonzero(prune_weights(kernel, sparsity) == 0) == count
    assert np.count_nonzero(prune_neurons(kernel, sparsity) == 0) == count


@given(KERNELS, SPARSITIES)
def test_exactly_the_requested_weights_go_and_the_kept_ones_are_no_smaller(kernel, sparsity):
    pruned = prune_weights(kernel, sparsity)
    kept = kernel[pruned != 0]
    gone = np.sort(np.abs(kernel), axis=None)[: round(sparsity * kernel.size)]
    assert np.count_nonzero(kernel) - kept.size == np.count_nonzero(gone)
    assert kept.size == 0 or gone.size == 0 or np.abs(kept).min() >= gone.max()
    np.testing.assert_array_equal(kept, pruned[pruned != 0])


@given(KERNELS, SPARSITIES)
def test_exactly_the_requested_neurons_go_whole_and_the_kept_ones_are_no_smaller(kernel, sparsity):
    norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), axis=0)
    pruned = prune_neurons(kernel, sparsity)
    changed = (kernel != pruned).reshape(-1, kernel.shape[-1]).any(axis=0)
    gone = np.sort(norms)[: round(sparsity * norms.size)]
    assert np.count_nonzero(changed) == np.count_nonzero(gone)
    assert not pruned[..., changed].any()
    if gone.size and not changed.all():
        assert norms[~changed & (norms > 0)].min(initial=np.inf) >= gone.max()


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
@given(kernel=KERNELS, sparsity=SPARSITIES)
def test_the_result_is_a_copy_of_the_same_shape_and_type(prune, kernel, sparsity):
    before = kernel.copy()
    pruned = prune(kernel, sparsity)
    assert pruned.shape == kernel.shape and pruned.dtype == kernel.dtype
    assert not np.shares_memory(pruned, kernel)
    np.testing.assert_array_equal(kernel, before)


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
@given(kernel=KERNELS)
def test_sparsity_0_changes_nothing_and_1_removes_everything(prune, kernel):
    np.testing.assert_array_equal(prune(kernel, 0), kernel)
    assert not prune(kernel, 1).any()


@pytest.mark.parametrize("method", METHODS)
@given(kernel=KERNELS, levels=st.lists(SPARSITIES, min_size=2, max_size=2), seed=st.integers(0, 9))
def test_a_higher_sparsity_removes_a_superset(method, kernel, levels, seed):
    kernel = np.where(kernel == 0, np.float32(1), kernel)  # so that a zero is a removed weight
    ranks = rank_for(method, kernel, np.random.default_rng(seed))
    lower, higher = (zero_lowest(kernel, ranks, level) == 0 for level in sorted(levels))
    assert not (lower & ~higher).any()


@pytest.mark.parametrize("method", METHODS)
@given(kernel=KERNELS, sparsity=SPARSITIES)
def test_a_control_removes_as_many_as_the_method_it_controls(method, kernel, sparsity):
    kernel = np.where(kernel == 0, np.float32(1), kernel)
    ranks = rank_for(method, kernel, np.random.default_rng(0))
    gone = zero_lowest(kernel, ranks, sparsity) == 0
    units = kernel.shape[-1]
    if method.endswith("neuron"):
        columns = gone.reshape(-1, units)
        assert (columns.any(axis=0) == columns.all(axis=0)).all()
        assert columns.all(axis=0).sum() == round(sparsity * units)
    else:
        assert gone.sum() == round(sparsity * kernel.size)


def test_the_controls_do_not_look_at_the_weights():
    small_first = np.arange(1, 1001, dtype=np.float32).reshape(1, 1000)
    for method in ("random_weight", "random_neuron"):
        ranks = rank_for(method, small_first, np.random.default_rng(0))
        removed = small_first[zero_lowest(small_first, ranks, 0.5) == 0]
        assert 450 < removed.mean() < 550  # the smallest half would average 250


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0001, float("nan"), float("inf")])
def test_a_sparsity_that_is_no_fraction_is_refused(prune, sparsity):
    with pytest.raises(ValueError, match=r"sparsity is a fraction in \[0, 1\], not"):
        prune(KERNEL, sparsity)


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
def test_what_is_no_kernel_is_refused(prune):
    with pytest.raises(ValueError, match=r"\[fan_in, units\], not \[3\]"):
        prune(np.ones(3), 0.5)
    with pytest.raises(ValueError, match="not finite"):
        prune(np.array([[1.0, np.nan]]), 0.5)


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
def test_kernels_of_a_keras_model_can_be_pruned(prune):
    """The use that the README shows, on a model with biases and a convolution."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(20, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    for layer in model.layers[:-1]:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([prune(kernel, 0.5), bias])
    sparsities = [np.mean(model.layers[i].get_weights()[0] == 0) for i in (0, 2, 3)]
    assert sparsities == [0.5, 0.5, 0]
    assert np.isfinite(model(np.ones((2, 8, 8, 1), np.float32))).all()

"""The pruning rules, on matrices small enough to check by hand and as properties."""

import numpy as np
import pytest
from conftest import draw_kernels
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from network_pruning import (
    METHODS,
    Network,
    as_neurons,
    layer_by_layer,
    magnitudes,
    prune,
    prune_neurons,
    prune_weights,
    rank,
    together,
    zero_lowest,
)

LAYER_BY_LAYER = ("weight", "neuron", "random_weight", "random_neuron")

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


def ranks_of(method, kernel, seed=0):
    """Ranks of what a method removes from a kernel."""
    return rank(METHODS[method].score(kernel, np.random.default_rng(seed)))


def removed_by(method, kernel, sparsity):
    """Where a method that treats each layer alike removes weights from a kernel without zeros."""
    ranks = ranks_of(method, kernel)
    [count] = layer_by_layer([kernel], [ranks], sparsity)
    return zero_lowest(kernel, ranks, count) == 0


@pytest.mark.parametrize("method", LAYER_BY_LAYER)
@given(kernel=KERNELS, levels=st.lists(SPARSITIES, min_size=2, max_size=2))
def test_a_higher_sparsity_removes_a_superset(method, kernel, levels):
    kernel = np.where(kernel == 0, np.float32(1), kernel)  # so that a zero is a removed weight
    lower, higher = (removed_by(method, kernel, level) for level in sorted(levels))
    assert not (lower & ~higher).any()


@pytest.mark.parametrize("method", LAYER_BY_LAYER)
@given(kernel=KERNELS, sparsity=SPARSITIES)
def test_a_random_baseline_removes_as_many_as_its_method(method, kernel, sparsity):
    kernel = np.where(kernel == 0, np.float32(1), kernel)
    gone = removed_by(method, kernel, sparsity)
    units = kernel.shape[-1]
    if method.endswith("neuron"):
        columns = gone.reshape(-1, units)
        assert (columns.any(axis=0) == columns.all(axis=0)).all()
        assert columns.all(axis=0).sum() == round(sparsity * units)
    else:
        assert gone.sum() == round(sparsity * kernel.size)


def test_the_random_baselines_do_not_look_at_the_weights():
    small_first = np.arange(1, 1001, dtype=np.float32).reshape(1, 1000)
    for method in ("random_weight", "random_neuron"):
        removed = small_first[removed_by(method, small_first, 0.5)]
        assert 450 < removed.mean() < 550  # the smallest half would average 250


# ----------------------------------------------------------------------- sparsity across layers

FIRST = np.array([[1.0, -9.0], [2.0, 8.0]])
SECOND = np.array([[3.0, -4.0, 0.5], [7.0, 6.0, 5.0]])


def test_global_pruning_removes_the_smallest_weights_of_all_layers():
    ranks = [rank(magnitudes(kernel)) for kernel in (FIRST, SECOND)]
    counts = together([FIRST, SECOND], ranks, 0.5)  # of 10: 0.5, 1, 2, 3 and 4
    assert list(counts) == [2, 3]
    pruned = [zero_lowest(*layer) for layer in zip((FIRST, SECOND), ranks, counts)]
    np.testing.assert_array_equal(pruned[0], [[0, -9], [0, 8]])
    np.testing.assert_array_equal(pruned[1], [[0, 0, 0], [7, 6, 5]])


def test_global_pruning_can_empty_a_layer_and_breaks_ties_in_order():
    kernels = [np.ones((2, 2)), np.full((2, 3), 5.0)]
    for sparsity, counts in ((0, [0, 0]), (0.1, [1, 0]), (0.4, [4, 0]), (0.7, [4, 3]), (1, [4, 6])):
        assert list(together(kernels, None, sparsity)) == counts


@given(seed=st.integers(0, 99), sparsity=SPARSITIES)
def test_global_pruning_is_a_threshold_over_all_layers(seed, sparsity):
    """The rule of torch's `global_unstructured`: the round(s n) smallest of all n weights go."""
    kernels = draw_kernels([5, 7, 4], np.random.default_rng(seed))
    counts = together(kernels, None, sparsity)
    every = np.sort(np.concatenate([np.abs(kernel).ravel() for kernel in kernels]))
    assert sum(counts) == round(sparsity * every.size)
    for kernel, count in zip(kernels, counts):
        assert count == np.isin(np.abs(kernel), every[: sum(counts)]).sum()


@given(
    sizes=st.lists(st.integers(2, 12), min_size=3, max_size=5),
    sparsity=SPARSITIES,
    seed=st.integers(0, 99),
)
def test_matched_pruning_keeps_what_neuron_pruning_leaves_live_layer_by_layer(
    sizes, sparsity, seed
):
    rng = np.random.default_rng(seed)
    network = Network(draw_kernels(sizes, rng), np.zeros(sizes[-1], np.float32))
    *hidden, output = network.kernels
    [(_, _, small)] = prune(network, "neuron", [sparsity], rng)
    live = [np.count_nonzero(kernel) for kernel in small.kernels[:-1]]
    ranks = [rank(magnitudes(kernel)) for kernel in hidden]
    counts = as_neurons(hidden, ranks, sparsity)
    assert [kernel.size - count for kernel, count in zip(hidden, counts)] == live
    for kernel, layer, count in zip(hidden, ranks, counts):
        pruned = zero_lowest(kernel, layer, count)
        gone = np.abs(kernel[pruned == 0])
        assert np.abs(pruned[pruned != 0]).min(initial=np.inf) >= gone.max(initial=0)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0001, float("nan"), float("inf"), "0.5", None, 0.5j])
def test_a_sparsity_that_is_no_fraction_is_refused(prune, sparsity):
    with pytest.raises(ValueError, match=r"sparsity is a fraction in \[0, 1\], not"):
        prune(KERNEL, sparsity)


@pytest.mark.parametrize("prune", [prune_weights, prune_neurons])
def test_what_is_no_kernel_is_refused(prune):
    with pytest.raises(ValueError, match=r"\[fan_in, units\], not \[3\]"):
        prune(np.ones(3), 0.5)
    for weights in ([[1.0, np.nan]], [[1j]], [["a"]], [[None]]):
        with pytest.raises(ValueError, match="finite real weights"):
            prune(np.array(weights), 0.5)


def test_the_magnitude_of_the_least_integer_does_not_overflow():
    kernel = np.array([[-128, 1, 2, 3]], np.int8)
    np.testing.assert_array_equal(prune_weights(kernel, 0.5), [[-128, 0, 0, 3]])
    np.testing.assert_array_equal(prune_neurons(kernel, 0.5), [[-128, 0, 0, 3]])

"""The pruning rules, on matrices small enough to check by hand and as properties."""

import numpy as np
import pytest
from conftest import draw_kernels
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from network_pruning import METHODS, compact, prune, prune_neurons, prune_weights

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


def test_the_count_is_exact_whatever_the_type_of_the_sparsity():
    kernel = np.ones((1000, 100))
    for kind in (np.float16, np.float32, np.float64):
        pruned = prune_weights(kernel, kind(0.5))
        assert np.count_nonzero(pruned) == 50_000


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


def pruned_by(method, kernels, sparsity, seed=0):
    """Kernels pruned by a method at one sparsity."""
    [pruned] = prune(kernels, method, [sparsity], np.random.default_rng(seed))
    return pruned


def removed_by(method, kernel, sparsity):
    """Where a method removes weights from a single kernel without zeros."""
    [pruned] = pruned_by(method, [kernel], sparsity)
    return pruned == 0


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
    # half of the 10 weights: 0.5, 1, 2, 3 and 4
    first, second = pruned_by("global_weight", [FIRST, SECOND], 0.5)
    np.testing.assert_array_equal(first, [[0, -9], [0, 8]])
    np.testing.assert_array_equal(second, [[0, 0, 0], [7, 6, 5]])


def test_global_pruning_can_empty_a_layer_and_breaks_ties_in_order():
    kernels = [np.ones((2, 2)), np.full((2, 3), 5.0)]
    for sparsity, counts in ((0, [0, 0]), (0.1, [1, 0]), (0.4, [4, 0]), (0.7, [4, 3]), (1, [4, 6])):
        pruned = pruned_by("global_weight", kernels, sparsity)
        assert [np.count_nonzero(kernel == 0) for kernel in pruned] == counts


@given(seed=st.integers(0, 99), sparsity=SPARSITIES)
def test_global_pruning_is_a_threshold_over_all_layers(seed, sparsity):
    """The rule of torch's `global_unstructured`: the round(s n) smallest of all n weights go."""
    kernels = draw_kernels([5, 7, 4], np.random.default_rng(seed))
    every = np.sort(np.concatenate([np.abs(kernel).ravel() for kernel in kernels]))
    gone = every[: round(sparsity * every.size)]
    for kernel, pruned in zip(kernels, pruned_by("global_weight", kernels, sparsity)):
        np.testing.assert_array_equal(pruned, np.where(np.isin(np.abs(kernel), gone), 0, kernel))


@given(
    sizes=st.lists(st.integers(2, 12), min_size=3, max_size=5),
    sparsity=SPARSITIES,
    seed=st.integers(0, 99),
)
def test_matched_pruning_keeps_what_neuron_pruning_leaves_live_layer_by_layer(
    sizes, sparsity, seed
):
    *hidden, output = draw_kernels(sizes, np.random.default_rng(seed))
    *live, _ = compact([*pruned_by("neuron", hidden, sparsity), output])
    matched = pruned_by("matched_weight", hidden, sparsity)
    assert list(map(np.count_nonzero, matched)) == list(map(np.count_nonzero, live))
    for kernel, pruned in zip(hidden, matched):
        gone = np.abs(kernel[pruned == 0])
        assert np.abs(pruned[pruned != 0]).min(initial=np.inf) >= gone.max(initial=0)


@pytest.mark.parametrize("method", METHODS)
def test_pruning_leaves_the_kernels_alone(method):
    kernels = draw_kernels([5, 7, 4], np.random.default_rng(0))
    before = [kernel.copy() for kernel in kernels]
    list(prune(kernels, method, [0.5, 1.0], np.random.default_rng(0)))
    for kernel, copy in zip(kernels, before):
        np.testing.assert_array_equal(kernel, copy)


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

"""Pruning, compaction and refitting: matrices small enough to check by hand, and properties."""

import ml_dtypes
import numpy as np
import pytest
from conftest import draw_kernels, pruned_by
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from network_pruning import (
    METHODS,
    compact,
    live_units,
    prune_neurons,
    prune_weights,
    refit,
    scaled_weight,
)

LAYER_BY_LAYER = ("weight", "neuron", "scaled_weight", "random_weight", "random_neuron")

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


def test_of_equal_weights_or_neurons_the_first_go_first():
    ones = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(prune_weights(ones, 0.7), [[0] * 5, [0, 0, 1, 1, 1]])
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


def removed_by(method, kernel, sparsity):
    """Where a method removes weights from a single kernel without zeros."""
    [pruned] = pruned_by(method, [kernel.reshape(-1, kernel.shape[-1])], sparsity)
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
        assert (gone.any(axis=0) == gone.all(axis=0)).all()
        assert gone.all(axis=0).sum() == round(sparsity * units)
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


def test_scaled_pruning_removes_the_smallest_products_of_magnitude_and_norm_of_the_input():
    kernels = [np.array([[4.0, -1.0], [1.0, -0.3]]), np.array([[1.0, 2.0]])]
    # the inputs have norms 1 and 5, and 0: the products are 4, 1, 5 and 1.5, and all 0
    inputs = [np.array([[1.0, 3.0], [0.0, 4.0]]), np.array([[0.0], [0.0]])]
    first, second = scaled_weight(kernels, inputs, 0.5, None)
    np.testing.assert_array_equal(first, [[4, 0], [1, 0]])
    np.testing.assert_array_equal(second, [[0, 2]])


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
    pruned_by(method, kernels, 0.5)
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
    for weights in ([[1j]], [["a"]], [[None]], np.ones((2, 2), ml_dtypes.bfloat16)):
        with pytest.raises(ValueError, match="real weights, not .*; convert it to float32"):
            prune(np.array(weights), 0.5)
    with pytest.raises(ValueError, match="finite weights"):
        prune(np.array([[1.0, np.nan]]), 0.5)


def test_the_magnitude_of_the_least_integer_does_not_overflow():
    kernel = np.array([[-128, 1, 2, 3]], np.int8)
    np.testing.assert_array_equal(prune_weights(kernel, 0.5), [[-128, 0, 0, 3]])
    np.testing.assert_array_equal(prune_neurons(kernel, 0.5), [[-128, 0, 0, 3]])


# ------------------------------------------------------------------------------------ compaction

SIZES = st.lists(st.integers(1, 12), min_size=3, max_size=6)


def outputs(kernels, inputs):
    """What a network of ReLU layers computes."""
    for kernel in kernels[:-1]:
        inputs = np.maximum(inputs @ kernel, 0)
    return inputs @ kernels[-1]


def assert_equivalent(kernels, inputs):
    """Compaction changes no output by more than float32 rounding, and leaves its input alone."""
    before = [kernel.copy() for kernel in kernels]
    whole, small = outputs(kernels, inputs), outputs(compact(kernels), inputs)
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5 * (1 + np.abs(whole).max()))
    for kernel, copy in zip(kernels, before):
        np.testing.assert_array_equal(kernel, copy)


def test_a_unit_without_inputs_or_without_outputs_is_deleted():
    first = np.array([[1.0, 0.0, 2.0, 3.0], [4.0, 0.0, 5.0, 6.0]])  # unit 1 has no inputs
    second = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [5.0, 6.0]])  # unit 2 no outputs
    small = compact([first, second])
    np.testing.assert_array_equal(small[0], [[1, 3], [4, 6]])
    np.testing.assert_array_equal(small[1], [[1, 2], [5, 6]])
    assert [units.tolist() for units in live_units([first, second])] == [[0, 1], [0, 3], [0, 1]]


def test_deletion_runs_through_the_layers_both_ways():
    chain = np.eye(2)
    cut = np.diag([1.0, 0.0])  # the second of two parallel paths is cut in the middle
    for kernel in compact([np.ones((3, 2)), chain, cut, chain, np.ones((2, 4))])[1:-1]:
        np.testing.assert_array_equal(kernel, [[1]])


def test_inputs_and_outputs_stay_even_if_unused():
    kernels = compact([np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])])
    assert [kernel.shape for kernel in kernels] == [(2, 2), (2, 2)]


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
def test_a_compacted_network_computes_the_same_and_has_nothing_left_to_delete(
    method, sizes, sparsity, seed
):
    rng = np.random.default_rng(seed)
    *hidden, output = draw_kernels(sizes, rng)
    kernels = [*pruned_by(method, hidden, sparsity, seed), output]
    assert_equivalent(kernels, rng.normal(size=(7, sizes[0])).astype(np.float32))
    small = compact(kernels)
    assert [kernel.shape for kernel in compact(small)] == [kernel.shape for kernel in small]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], r"consecutive layers: \[\]"),
        ([(3, 4), (4,), (4, 2), (2,)], r"layers: \[\(3, 4\), \(4,\).* with biases cannot"),
        ([(3, 4), (4, 2), (2,)], "leave out the output bias"),
        ([(3, 4), (5, 2)], r"of consecutive layers: \[\(3, 4\), \(5, 2\)\]"),
        ([(3, 0), (0, 2)], r"a layer without inputs or units: \[\(3, 0\), \(0, 2\)\]"),
    ],
    ids=["nothing", "hidden-biases", "output-bias", "broken-chain", "no-units"],
)
def test_what_cannot_be_compacted_is_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        compact([np.ones(shape) for shape in shapes])


# ----------------------------------------------------------------------------------------- refit

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
        result[kept, unit] += np.linalg.solve(x.T @ x + penalty * np.eye(len(kept)), x.T @ errors)
    return result


def objective(kernel, before, inputs, targets):
    """What `refit` minimizes, for each unit."""
    penalty = RIDGE * np.sum(inputs**2) / np.count_nonzero(inputs.any(axis=0))
    errors = np.sum((inputs @ kernel - targets) ** 2, axis=0)
    return errors + penalty * np.sum((kernel - before) ** 2, axis=0)


@pytest.mark.parametrize(
    "prune",
    [
        lambda kernel: kernel,
        lambda kernel: prune_weights(kernel, 0.6),
        lambda kernel: prune_neurons(kernel, 0.4),
        lambda kernel: prune_weights(kernel, 1),
    ],
    ids=["dense", "weights", "neurons", "nothing-left"],
)
def test_refit_is_the_least_squares_solution_on_the_weights_that_are_left(prune):
    kernel, inputs, targets = layer()
    pruned = prune(kernel)
    result = refit(pruned, inputs, targets, steps=50, ridge=RIDGE)
    np.testing.assert_allclose(result, solved(pruned, inputs, targets), atol=1e-12)
    np.testing.assert_array_equal(result == 0, pruned == 0)


@given(seed=st.integers(0, 99), sparsity=SPARSITIES)
def test_every_step_of_refit_lowers_its_objective(seed, sparsity):
    kernel, inputs, targets = layer(seed)
    pruned = prune_weights(kernel, sparsity)
    last = objective(pruned, pruned, inputs, targets)
    for steps in range(1, 10):
        result = refit(pruned, inputs, targets, steps=steps, ridge=RIDGE)
        now = objective(result, pruned, inputs, targets)
        assert (now <= last + 1e-9).all()
        last = now


def test_refit_changes_no_kernel_that_computes_its_targets():
    kernel, inputs, _ = (array.astype(np.float32) for array in layer())
    np.testing.assert_array_equal(refit(kernel, inputs, inputs @ kernel), kernel)


def test_refit_leaves_weights_on_inputs_that_are_always_0_and_its_arguments_alone():
    kernel, inputs, targets = arguments = layer()
    before = [array.copy() for array in arguments]
    result = refit(kernel, inputs, targets)
    np.testing.assert_array_equal(result[3], kernel[3])
    assert (result != kernel).sum() == kernel.size - kernel.shape[1]
    for array, copy in zip(arguments, before):
        np.testing.assert_array_equal(array, copy)


def test_refit_of_float32_is_float32_and_reads_unsigned_bytes():
    kernel, inputs, targets = layer()
    pixels = np.round(100 * inputs).astype(np.uint8)
    result = refit(kernel.astype(np.float32), pixels, targets.astype(np.float32), steps=40)
    assert result.dtype == np.float32
    np.testing.assert_allclose(
        result, refit(kernel, pixels, targets, steps=40), rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize(
    "shapes",
    [
        [(8,), (30, 8), (30, 5)],
        [(8, 5), (30, 7), (30, 5)],
        [(8, 5), (30, 8), (30, 4)],
        [(8, 5), (29, 8), (30, 5)],
        [(8, 5), (0, 8), (0, 5)],
    ],
)
def test_what_cannot_be_refit_is_refused(shapes):
    with pytest.raises(ValueError, match=r"not a kernel \[fan_in, units\], inputs \[n, fan_in\]"):
        refit(*(np.ones(shape) for shape in shapes))


@pytest.mark.parametrize("which", range(3))
def test_refit_refuses_values_that_are_not_finite(which):
    arguments = list(layer())
    arguments[which][0, 0] = np.inf
    with pytest.raises(ValueError, match="must be finite"):
        refit(*arguments)


@pytest.mark.parametrize("ridge", [-1, float("nan"), float("inf")])
def test_refit_refuses_a_ridge_that_is_negative_or_not_finite(ridge):
    with pytest.raises(ValueError, match="ridge is a finite number of at least 0, not"):
        refit(*layer(), ridge=ridge)


def test_refit_never_returns_weights_that_are_not_finite():
    kernel = np.ones((1, 1), np.float32)
    inputs, targets = np.float32([[1e-30]]), np.float32([[1e30]])  # 1e60 would do
    with pytest.raises(ValueError, match="too large for float32"):
        refit(kernel, inputs, targets, ridge=0)


def test_a_unit_that_has_converged_stays_as_it_is():
    inputs, targets = np.array([[1, 0.3, 0.7], [0.2, 1, 0.1]]), np.array([[5.0, 1], [1.3, 2]])
    kernel = np.ones((3, 2))
    after = [refit(kernel, inputs, targets, steps, ridge=0) for steps in (5, 20, 1000)]
    np.testing.assert_allclose(inputs @ after[0], targets)
    np.testing.assert_array_equal(after[0], after[1])
    np.testing.assert_array_equal(after[0], after[2])


@given(seed=st.integers(0, 999), ridge=st.sampled_from([0, 1e-8, 0.01]), kind=st.sampled_from("fd"))
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


@pytest.mark.parametrize("exponent", [-100, -66, 63, 100])  # squares of float32 end at 2**127
def test_refit_does_not_depend_on_the_scale_of_inputs_and_targets(exponent):
    kernel, inputs, targets = (array.astype(np.float32) for array in layer())
    kernel = prune_weights(kernel, 0.5)
    scale = np.float32(2.0**exponent)
    scaled = refit(kernel, scale * inputs, scale * targets)
    np.testing.assert_array_equal(scaled, refit(kernel, inputs, targets))

"""Networks that really shrink: compaction, the weights that still act, the speed, the files."""

import keras
import numpy as np
import pytest
from conftest import read_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from network_pruning import (
    HIDDEN_UNITS,
    METHODS,
    Network,
    compact,
    logits,
    measure,
    on_device,
    rank_for,
    save_models,
    zero_lowest,
)

SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=6)
SPARSITIES = st.one_of(st.sampled_from([0, 0.5, 0.9, 0.99, 1]), st.floats(0, 1))


def draw_kernels(sizes, rng):
    """Random kernels of a network with layers of these sizes, input first."""
    return [rng.normal(size=shape).astype(np.float32) for shape in zip(sizes, sizes[1:])]


def prune(kernels, method, sparsity, rng):
    """Prune all kernels but the output's."""
    *hidden, output = kernels
    return [*(zero_lowest(k, rank_for(method, k, rng), sparsity) for k in hidden), output]


def outputs(kernels, images):
    """Logits without a bias."""
    return logits(Network(kernels, np.zeros(kernels[-1].shape[1], np.float32)), images).numpy()


def assert_equivalent(kernels, images):
    """Compaction changes no logit by more than float32 rounding, and leaves its input alone."""
    before = [kernel.copy() for kernel in kernels]
    whole, small = outputs(kernels, images), outputs(compact(kernels), images)
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5 * (1 + np.abs(whole).max()))
    for kernel, copy in zip(kernels, before):
        np.testing.assert_array_equal(kernel, copy)


def test_a_unit_without_inputs_or_without_outputs_is_deleted():
    first = np.array([[1.0, 0.0, 2.0, 3.0], [4.0, 0.0, 5.0, 6.0]])  # unit 1 has no inputs
    second = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [5.0, 6.0]])  # unit 2 no outputs
    small = compact([first, second])
    np.testing.assert_array_equal(small[0], [[1, 3], [4, 6]])
    np.testing.assert_array_equal(small[1], [[1, 2], [5, 6]])


def test_deletion_runs_through_the_layers_both_ways():
    chain = np.eye(2)
    cut = np.diag([1.0, 0.0])  # the second of two parallel paths is cut in the middle
    for kernel in compact([np.ones((3, 2)), chain, cut, chain, np.ones((2, 4))])[1:-1]:
        np.testing.assert_array_equal(kernel, [[1]])


def test_inputs_and_outputs_stay_even_if_unused():
    kernels = compact([np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])])
    assert [kernel.shape for kernel in kernels] == [(2, 2), (2, 2)]


def test_a_layer_can_lose_all_its_units():
    kernels = [
        np.zeros((3, 4), np.float32),
        np.ones((4, 5), np.float32),
        np.ones((5, 2), np.float32),
    ]
    small = compact(kernels)
    assert [kernel.shape for kernel in small] == [(3, 0), (0, 0), (0, 2)]
    np.testing.assert_array_equal(outputs(small, np.ones((6, 3), np.float32)), np.zeros((6, 2)))


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)
@given(sizes=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_a_compacted_network_computes_the_same(method, sizes, sparsity, seed):
    rng = np.random.default_rng(seed)
    kernels = prune(draw_kernels(sizes, rng), method, sparsity, rng)
    assert_equivalent(kernels, rng.normal(size=(7, sizes[0])).astype(np.float32))


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_also_where_training_left_units_dead(sizes, seed):
    rng = np.random.default_rng(seed)
    kernels = draw_kernels(sizes, rng)
    for kernel in kernels:
        kernel[rng.random(kernel.shape[0]) < 0.3] = 0  # no outputs
        kernel[:, rng.random(kernel.shape[1]) < 0.3] = 0  # no inputs
        negative = rng.random(kernel.shape[1]) < 0.3  # never active on these images
        kernel[:, negative] = -np.abs(kernel[:, negative])
    assert_equivalent(kernels, rng.random((7, sizes[0]), dtype=np.float32))


@settings(deadline=None)
@given(sizes=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_nothing_is_left_to_delete(sizes, sparsity, seed):
    rng = np.random.default_rng(seed)
    small = compact(prune(draw_kernels(sizes, rng), "random_weight", sparsity, rng))
    assert [kernel.shape for kernel in compact(small)] == [kernel.shape for kernel in small]


def test_hidden_biases_are_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    with pytest.raises(
        ValueError, match=r"no hidden biases, .* shapes \[\(3, 4\), \(4,\), \(4, 2\)"
    ):
        compact(model.get_weights())


def test_kernels_that_do_not_chain_are_refused():
    with pytest.raises(ValueError, match=r"that chain, .* shapes \[\(3, 4\), \(5, 2\)\]"):
        compact([np.ones((3, 4)), np.ones((5, 2))])


@pytest.mark.parametrize(("sparsity", "share"), [(0, 1), (0.5, 0.332), (0.8, 0.093), (0.9, 0.040)])
def test_of_a_neuron_pruned_network_fewer_weights_are_live_than_kept(sparsity, share):
    rng = np.random.default_rng(0)
    network = Network(draw_kernels([784, *HIDDEN_UNITS, 10], rng), np.zeros(10, np.float32))
    images = rng.random((2, 784), dtype=np.float32)
    *pruned, _ = prune(network.kernels, "neuron", sparsity, rng)
    measured = measure(network, pruned, on_device(network), images, np.array([0, 1]))
    assert round(measured["live_fraction"], 3) == round(measured["stored_fraction"], 3) == share
    assert measured["achieved_sparsity"] == sparsity


def test_live_and_stored_weights_of_a_hand_worked_network():
    first = np.array([[1, 0, 2], [0, 0, 3]], np.float32)
    second = np.array([[1, 0], [4, 0], [5, 0]], np.float32)  # the third unit of the middle
    network = Network([first, second, np.ones((2, 2), np.float32)], np.zeros(2, np.float32))
    images = np.ones((1, 2), np.float32)
    measured = measure(network, [first, second], on_device(network), images, np.array([0]))
    # unit 1 of the first layer and unit 1 of the second have no inputs: of the 12 hidden weights
    # a 2 x 2 and a 2 x 1 kernel are stored, one of whose weights is 0
    assert measured["stored_fraction"] == 0.5
    assert measured["live_fraction"] == pytest.approx(5 / 12, abs=1e-6)
    assert measured["speedup"] > 0


def test_saved_models_load_in_keras_alone_and_are_as_accurate_as_stated(run_main, tmp_path):
    levels = ("--sparsities", 0.5, 0.8, 1)
    short = ("--datasets", "digits", "--epochs", 5, "--hidden-units", 60, 30, "--runs", 2)
    assert run_main(*short, *levels, "--save-models", "--output-dir", "saved").returncode == 0
    from network_pruning import load_datasets

    [digits] = load_datasets(["digits"], None)
    images = digits.test_images.reshape(360, 64) / 16
    stated = {
        f"digits-neuron-{row['sparsity']:g}": row["test_accuracy"]
        for row in read_csv(tmp_path / "saved" / "digits.csv")
        if row["run"] == 0 and row["method"] == "neuron"
    }
    files = sorted(path.stem for path in (tmp_path / "saved").glob("*.keras"))
    assert files == ["digits-dense", *sorted(stated)]
    for name, accuracy in stated.items():
        model = keras.models.load_model(tmp_path / "saved" / f"{name}.keras")
        predicted = model.predict(images, verbose=0).argmax(axis=1)
        assert np.mean(predicted == digits.test_labels) == pytest.approx(accuracy, abs=1e-6)
    assert model.count_params() == 64 + 1 + 10 + 10  # a unit of zeros for each layer, the bias
    half = keras.models.load_model(tmp_path / "saved" / "digits-neuron-0.5.keras")
    assert [layer.units for layer in half.layers] == [30, 15, 10]


def test_a_saved_dense_network_is_the_network(tmp_path):
    rng = np.random.default_rng(0)
    network = Network(draw_kernels([6, 5, 4, 10], rng), rng.normal(size=10).astype(np.float32))
    [path, *_] = save_models(tmp_path, "toy", network, [])
    images = rng.random((7, 6), dtype=np.float32)
    loaded = keras.models.load_model(path)(images)
    np.testing.assert_allclose(loaded, logits(network, images), rtol=1e-5, atol=1e-5)

"""Networks that really shrink: compaction, the weights that still act, the speed, the files."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import draw_kernels, read_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import network_pruning
from network_pruning import (
    HIDDEN_UNITS,
    METHODS,
    compact,
    keras_model,
    load_dataset,
    measure,
    measure_networks,
    on_device,
    prune,
    unbiased_logits,
)

keras = tf.keras
SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=6)
SPARSITIES = st.one_of(st.sampled_from([0, 0.5, 0.9, 0.99, 1]), st.floats(0, 1))


def pruned_kernels(kernels, method, sparsity, rng):
    """Prune all kernels but the output's, without compaction."""
    *hidden, output = kernels
    [pruned] = prune(hidden, method, [sparsity], rng)
    return [*pruned, output]


def assert_equivalent(kernels, images):
    """Compaction changes no logit by more than float32 rounding, and leaves its input alone."""
    before = [kernel.copy() for kernel in kernels]
    whole, small = (unbiased_logits(ks, tf.constant(images)) for ks in (kernels, compact(kernels)))
    largest = np.abs(whole).max()
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5 * (1 + largest))
    for kernel, copy in zip(kernels, before):
        np.testing.assert_array_equal(kernel, copy)


# ------------------------------------------------------------------------------------ compaction


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


def test_a_layer_that_loses_all_its_units_gets_one_of_zeros():
    small = compact([np.zeros((3, 4)), np.ones((4, 5)), np.ones((5, 2))])
    assert [kernel.shape for kernel in small] == [(3, 1), (1, 1), (1, 2)]
    assert not any(kernel.any() for kernel in small)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=50)
@given(sizes=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_a_compacted_network_computes_the_same(method, sizes, sparsity, seed):
    if len(sizes) == 2 and method in ("matched_weight", "global_weight"):
        return  # no hidden layer
    rng = np.random.default_rng(seed)
    kernels = pruned_kernels(draw_kernels(sizes, rng), method, sparsity, rng)
    assert_equivalent(kernels, rng.normal(size=(7, sizes[0])).astype(np.float32))


@settings(deadline=None, max_examples=50)
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
    small = compact(pruned_kernels(draw_kernels(sizes, rng), "random_weight", sparsity, rng))
    assert [kernel.shape for kernel in compact(small)] == [kernel.shape for kernel in small]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], r"consecutive layers: \[\]"),
        ([(3, 4), (4,), (4, 2), (2,)], r"layers: \[\(3, 4\), \(4,\).* with hidden biases no unit"),
        ([(3, 4), (4, 2), (2,)], "leave out the output bias"),
        ([(3, 4), (5, 2)], r"of consecutive layers: \[\(3, 4\), \(5, 2\)\]"),
    ],
    ids=["nothing", "hidden-biases", "output-bias", "broken-chain"],
)
def test_what_cannot_be_compacted_is_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        compact([np.ones(shape) for shape in shapes])


# ----------------------------------------------------------------------------------- measurement


def measured(kernels, dense, images, labels, bias=None):
    """Measure a network on a few images, made from one with dense kernels."""
    bias = np.zeros(kernels[-1].shape[1], np.float32) if bias is None else bias
    data = SimpleNamespace(test_images=tf.constant(images), test_labels=np.array(labels))
    return measure([*kernels, bias], [*dense, bias], data)


@pytest.mark.parametrize(("sparsity", "share"), [(0, 1), (0.5, 0.332), (0.8, 0.093), (0.9, 0.040)])
def test_of_a_neuron_pruned_network_fewer_weights_are_live_than_kept(sparsity, share):
    rng = np.random.default_rng(0)
    dense = draw_kernels([784, *HIDDEN_UNITS, 10], rng)
    small = compact(pruned_kernels(dense, "neuron", sparsity, rng))
    images = rng.random((2, 784), dtype=np.float32)
    row = measured(small, dense, images, [0, 1])
    assert round(row["live_fraction"], 3) == round(row["stored_fraction"], 3) == share


def test_live_and_stored_weights_of_a_hand_worked_network():
    first = np.array([[1, 0, 2], [0, 0, 3]], np.float32)
    second = np.array([[1, 0], [4, 0], [5, 0]], np.float32)
    kernels = [first, second, np.ones((2, 2), np.float32)]
    row = measured(compact(kernels), kernels, np.ones((1, 2), np.float32), [0])
    # unit 1 of the first layer and unit 1 of the second have no inputs: of the 12 hidden weights
    # a 2 x 2 and a 2 x 1 kernel are stored, one of whose weights is 0
    assert row["stored_fraction"] == 0.5 and row["layer_sizes"] == "2-2-1-2"
    assert row["live_fraction"] == pytest.approx(5 / 12, abs=1e-6)


def test_accuracy_with_and_without_the_output_bias_of_a_hand_worked_network():
    kernels = [np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)]
    images = np.array([[2, 1], [1, 2], [3, 1], [1, 9]], np.float32)
    row = measured(kernels, kernels, images, [0, 1, 0, 1], bias=np.array([0, 5], np.float32))
    # the bias of the second class outweighs the images 0 and 2
    assert row["test_accuracy"] == 0.5 and row["unbiased_accuracy"] == 1


def test_the_bias_decides_alone_when_every_hidden_weight_is_pruned():
    kernels = compact([np.zeros((2, 3), np.float32), np.ones((3, 2), np.float32)])
    row = measured(
        kernels, kernels, np.ones((4, 2), np.float32), [0, 1, 1, 1], np.array([0, 1], "f4")
    )
    assert row["live_fraction"] == 0
    assert row["test_accuracy"] == 0.75 and row["unbiased_accuracy"] == 0.25  # ties: first class


def test_a_speedup_above_1_means_faster_than_dense_and_equal_sizes_share_it(monkeypatch):
    rng = np.random.default_rng(0)
    dense, bias = draw_kernels([6, 40, 10], rng), np.zeros(10, np.float32)
    networks = [({"method": "neuron", "sparsity": 0}, [*dense, bias])]
    for method in ("neuron", "random_neuron"):
        for sparsity in (0.5, 0.9):
            small = compact(pruned_kernels(dense, method, sparsity, rng))
            networks.append(({"method": method, "sparsity": sparsity}, [*small, bias]))
    data = SimpleNamespace(test_images=tf.zeros((5, 6)), test_labels=np.zeros(5, np.int64))
    seconds = {"6-40-10": 8.0, "6-20-10": 4.0, "6-4-10": 1.0}
    monkeypatch.setattr(
        network_pruning, "time_networks", lambda of_sizes, _: {s: seconds[s] for s in of_sizes}
    )
    rows, of_neurons = measure_networks(networks, data)
    assert [row["speedup"] for row in rows] == [1, 2, 8, 2, 8]
    assert [(level, network[0].shape[1]) for level, network in of_neurons.items()] == [
        (0, 40),
        (0.5, 20),
        (0.9, 4),
    ]


def test_networks_are_timed_in_rounds_and_the_best_of_each_counts(monkeypatch):
    clock, calls = [0.0], []
    paces = iter([5.0, 1.0, 9.0, 2.0, 3.0, 4.0])

    def logits(kernels, images):
        calls.append(kernels[0].shape[1])
        clock[0] += next(paces)

    monkeypatch.setattr(network_pruning, "compiled", lambda function: logits)
    monkeypatch.setattr(network_pruning.time, "perf_counter", lambda: clock[0])
    networks = {
        name: [np.zeros((2, units), np.float32), None]
        for name, units in {"wide": 4, "narrow": 1}.items()
    }
    seconds = network_pruning.time_networks(networks, None)
    assert calls == [4, 1] * 3
    assert seconds == {"wide": 3, "narrow": 1}


# ----------------------------------------------------------------------------------- saved files


@pytest.mark.parametrize("retrain_epochs", [0, 3])
def test_saved_models_are_evaluated_by_keras_alone_as_the_csv_says(
    run_main, tmp_path, retrain_epochs
):
    levels = ("--sparsities", 0.5, 1, "--methods", "neuron")
    short = ("--datasets", "digits", "--epochs", 5, "--hidden-units", 60, 30, "--runs", 2)
    arguments = (*short, *levels, "--retrain-epochs", retrain_epochs, "--save-models")
    assert run_main(*arguments, "--output-dir", "saved").returncode == 0
    digits = load_dataset("digits", None)
    images = digits.test_images.reshape(360, 64) / 16
    stated = {
        f"neuron-{row['sparsity']}": row
        for row in read_rows(tmp_path / "saved" / "digits.csv")
        if (row["run"], row["method"], row["retrain_epochs"]) == (0, "neuron", retrain_epochs)
    }
    files = {path.stem for path in (tmp_path / "saved").glob("*.keras")}
    assert files == {f"digits-{name}" for name in stated}
    for name, row in stated.items():
        model = keras.models.load_model(tmp_path / "saved" / f"digits-{name}.keras")
        loss, accuracy = model.evaluate(images, digits.test_labels, verbose=0)
        assert accuracy == pytest.approx(row["test_accuracy"], abs=1e-6)
        assert loss == pytest.approx(row["test_loss"], rel=1e-4)
    half = keras.models.load_model(tmp_path / "saved" / "digits-neuron-0.5.keras")
    assert [layer.units for layer in half.layers] == [30, 15, 10]


def test_a_keras_model_is_the_network(tmp_path):
    rng = np.random.default_rng(0)
    kernels, bias = draw_kernels([6, 5, 4, 10], rng), rng.normal(size=10).astype(np.float32)
    images = tf.constant(rng.random((7, 6), dtype=np.float32))
    expected = unbiased_logits(kernels, images) + bias
    model = keras_model([*kernels, bias])
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-5)


def test_pixels_are_scaled_to_1_on_the_device():
    data = on_device(load_dataset("digits", None))  # whose pixels are at most 16
    assert data.train_images.shape == (1437, 64) and data.test_images.shape == (360, 64)
    assert data.train_images.dtype == data.test_images.dtype == tf.float32
    assert np.max(data.test_images) == 1 and np.min(data.test_images) == 0

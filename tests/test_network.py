"""The network, its training and retraining, and the refitting of whole networks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import IMAGES, LABELS, TOY, flat, pruned_by, received

import network_pruning
from network_pruning import REPAIRS, compact, keras, network_of, new_network, refit, tf


def train_toy(network=None, epochs=2, seed=0):
    rng = np.random.default_rng(seed)
    network = network or new_network([6, 16, 8, 6], rng)
    options = SimpleNamespace(batch_size=32, learning_rate=0.01)
    return network_pruning.train(network, TOY, epochs, options, rng)


def quality(network):
    logits = received(network, IMAGES)[-1] @ network.output + network.bias
    return network_pruning.evaluate(logits, LABELS)


def test_hidden_layers_are_relus_without_bias_and_begin_glorot_uniform():
    network = network_of([np.array([[1.0, -1.0]]), np.array([[2.0, 0.0], [5.0, 1.0]]), [1.0, 0.0]])
    _, hidden = received(network, np.array([[3.0], [-2.0]]))
    np.testing.assert_array_equal(hidden, [[3, 0], [0, 2]])
    network = new_network([300, 100, 10], np.random.default_rng(0))
    limit = math.sqrt(6 / 400)
    [first] = network.hidden
    assert first.dtype == np.float32 and np.abs(first).max() <= limit
    assert first.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert network.sizes == (300, 100, 10) and not network.bias.any()


def test_accuracy_and_loss_of_hand_worked_logits():
    outputs = np.array([[math.log(3), 0.0], [0.0, math.log(4)], [0.0, 0.0], [0.0, 0.0]])
    accuracy, loss = network_pruning.evaluate(outputs, np.array([0, 0, 0, 1])).values()
    assert accuracy == 0.5  # right, wrong, right (a tie goes to the first class), wrong
    assert loss == pytest.approx((math.log(4 / 3) + math.log(5) + 2 * math.log(2)) / 4)
    large = network_pruning.evaluate(1000 * np.eye(2, dtype=np.float32), np.array([0, 0]))
    assert large == {"test_accuracy": 0.5, "test_loss": 500}


def test_training_is_adam_on_the_mean_loss_of_batches_of_a_permutation():
    network = new_network([6, 16, 8, 6], np.random.default_rng(3))
    model = network_pruning.keras_model(network)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01, epsilon=1e-8), loss)
    orders = np.random.default_rng(7)
    for _ in range(2):
        order = orders.permutation(100)
        model.fit(IMAGES[order], LABELS[order], 32, shuffle=False, verbose=0)
    trained = train_toy(network, seed=7)
    values = flat([*trained.kernels, trained.bias])
    np.testing.assert_allclose(values, flat(model.get_weights()), rtol=1e-3, atol=1e-5)


def test_training_learns_and_a_seed_gives_the_same_network_each_time():
    first, again, other = (train_toy(epochs=100, seed=seed) for seed in (0, 0, 1))
    assert quality(first)["test_accuracy"] > 0.6  # at least 0.85 in 10 seeds
    np.testing.assert_array_equal(flat(first.kernels), flat(again.kernels))
    assert (flat(first.kernels) != flat(other.kernels)).all()


def test_retraining_keeps_zeros_and_compacted_is_as_masked():
    network = train_toy(new_network([6, 32, 32, 6], np.random.default_rng(0)))
    [hidden] = pruned_by("weight", network, [0.9])
    kernels = [*hidden, network.output]
    # an output weight whose unit is gone is masked in the twin, as compaction deletes it
    kernels[-1][~kernels[-2].any(axis=0)] = 0
    small = network_of([*compact(kernels), network.bias])
    assert small.sizes < network.sizes
    small, masked = train_toy(small, 5), train_toy(network_of([*kernels, network.bias]), 5)
    assert not flat(masked.kernels)[flat(kernels) == 0].any()
    expected = flat([*compact(masked.kernels), masked.bias])
    np.testing.assert_allclose(flat([*small.kernels, small.bias]), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("repair", ["refit", "refit_output"])
def test_each_layer_is_refit_on_what_the_refit_ones_before_it_give(repair):
    dense = train_toy(epochs=50)
    pruned = dense._replace(hidden=pruned_by("weight", dense, [0.5])[0])
    targets = [x @ kernel for x, kernel in zip(received(dense, IMAGES), dense.kernels)]
    refitted = REPAIRS[repair](pruned, IMAGES, targets)
    for layer, expected in enumerate(pruned.kernels):
        if repair == "refit" or layer == 2:
            expected = refit(expected, received(refitted, IMAGES)[layer], targets[layer])
        np.testing.assert_allclose(refitted.kernels[layer], expected, rtol=1e-3, atol=1e-4)
    assert (refitted.output != dense.output).any()


@pytest.mark.skipif(network_pruning.device_name() == "CPU", reason="no GPU")
def test_a_gpu_trains_what_a_cpu_trains():
    on_gpu = quality(train_toy(epochs=20))["test_loss"]
    with tf.device("CPU"):
        on_cpu = quality(train_toy(epochs=20))["test_loss"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)

"""The network, its training and its evaluation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import network_pruning
from network_pruning import (
    Network,
    UserError,
    compiled_training,
    cross_entropy,
    evaluate,
    initial_parameters,
    logits,
    sweep,
    train,
)

RECIPE = SimpleNamespace(hidden_units=(16, 8), epochs=2, batch_size=32, learning_rate=0.01)


def toy_data(images=100, pixels=6):
    """Images whose label is their brightest pixel."""
    rng = np.random.default_rng(0)
    drawn = rng.random((images, pixels), dtype=np.float32)
    return tf.constant(drawn), tf.constant(drawn.argmax(axis=1))


def train_toy(seed=0, **changes):
    """Train on the toy data by the recipe with changes."""
    return train(
        *toy_data(), SimpleNamespace(**vars(RECIPE) | changes), np.random.default_rng(seed)
    )


def test_logits_are_those_of_a_hand_worked_network():
    network = Network(
        [np.array([[1.0, -1.0]]), np.array([[2.0, 0.0], [5.0, 1.0]])], np.array([0.5, 0.25])
    )
    # 3 -> hidden (3, 0) -> (6, 0) and the bias; -2 -> hidden (0, 2) -> (10, 2) and the bias
    np.testing.assert_array_equal(
        logits(network, np.array([[3.0], [-2.0]])), [[6.5, 0.25], [10.5, 2.25]]
    )


def test_accuracy_and_loss_of_hand_worked_logits():
    outputs = np.array([[math.log(3), 0.0], [0.0, math.log(4)], [0.0, 0.0], [0.0, 0.0]])
    accuracy, loss = evaluate(outputs, np.array([0, 0, 0, 1]))
    assert accuracy == 0.5  # right, wrong, right (a tie goes to the first class), wrong
    assert loss == pytest.approx((math.log(4 / 3) + math.log(5) + 2 * math.log(2)) / 4)


def test_the_loss_of_large_logits_does_not_overflow():
    assert evaluate(1000 * np.eye(2, dtype=np.float32), np.array([0, 0])) == (0.5, 500)


@pytest.mark.parametrize("gpus", [[], ["GPU"]])
def test_losses_and_gradients_are_the_same_on_every_device(monkeypatch, gpus):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    outputs = np.zeros((3, 10), np.float32)
    outputs[0, 0], outputs[1] = math.log(3), np.linspace(-200, 200, 10)  # 3 : 1 : ... : 1
    losses, gradients = cross_entropy(outputs, np.array([0, 0, 4]))
    np.testing.assert_allclose(losses, [math.log(4), 400, math.log(10)], rtol=1e-6)
    expected = np.zeros((3, 10))
    expected[0], expected[2] = 1 / 12, 0.1
    expected[0, 0], expected[1, 0], expected[1, 9], expected[2, 4] = -0.75, -1, 1, -0.9
    np.testing.assert_allclose(gradients, expected, atol=1e-6)


def evaluate_on(images, network, labels):
    """Accuracy and loss of a network."""
    return evaluate(logits(network, images).numpy(), labels.numpy())


def calls_of_training(monkeypatch, images, batch_size, epochs, images_per_second=1e9):
    """Train with a loop that only takes its time; return each call's order, batches and steps."""
    clock, calls = [0.0], []

    def train_batches(parameters, pixels, labels, order, batches, earlier, *settings):
        calls.append((order.numpy(), *batches.numpy(), earlier.numpy()))
        clock[0] += (calls[-1][2] - calls[-1][1]) * batch_size / images_per_second
        return 1.0

    monkeypatch.setattr(network_pruning, "compiled_training", lambda: train_batches)
    monkeypatch.setattr(network_pruning.time, "perf_counter", lambda: clock[0])
    recipe = SimpleNamespace(**vars(RECIPE) | dict(epochs=epochs, batch_size=batch_size))
    train(*toy_data(images), recipe, np.random.default_rng(0))
    return calls


@pytest.mark.parametrize("images", [1, 31, 32, 33, 1000])
def test_an_epoch_is_a_permutation_in_whole_batches(monkeypatch, images):
    calls = calls_of_training(monkeypatch, images, 32, 3)
    batches = math.ceil(images / 32)
    for epoch in range(3):
        orders, firsts, lasts, earlier = zip(*(c for c in calls if c[3] == epoch * batches))
        assert [n for span in zip(firsts, lasts) for n in range(*span)] == list(range(batches))
        assert sorted(orders[0]) == list(range(images))
        assert all(order is orders[0] or (order == orders[0]).all() for order in orders)
    if images == 1000:
        assert (calls[0][0] != calls[-1][0]).any()


def test_a_call_takes_about_as_long_as_it_should(monkeypatch):
    calls = calls_of_training(monkeypatch, 60000, 100, 2, images_per_second=40000)
    # half a second's worth, 20,000 images, once the pace is known
    sizes = [last - first for _, first, last, _ in calls]
    assert sizes == [8, 200, 200, 192, 200, 200, 200]


def reference_training(network, images, labels, batches, rate):
    """Adam (Kingma and Ba 2015, the efficient form at the end of section 2), in NumPy."""
    values = [np.array(v, np.float64) for v in (*network.kernels, network.bias)]
    first, second = ([np.zeros_like(v) for v in values] for _ in range(2))
    for step, batch in enumerate(batches, 1):
        variables = [tf.Variable(value) for value in values]
        with tf.GradientTape() as tape:
            outputs = logits(
                Network(variables[:-1], variables[-1]), tf.cast(images, tf.float64).numpy()[batch]
            )
            loss = tf.reduce_mean(
                tf.keras.losses.sparse_categorical_crossentropy(
                    labels.numpy()[batch], outputs, from_logits=True
                )
            )
        for i, gradient in enumerate(g.numpy() for g in tape.gradient(loss, variables)):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            corrected = rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            values[i] -= corrected * first[i] / (np.sqrt(second[i]) + 1e-8)
    return values


def test_training_is_adam_on_the_mean_loss_of_each_batch():
    rng = np.random.default_rng(3)
    images, labels = toy_data()
    draw = [rng.normal(size=shape).astype(np.float32) for shape in ((6, 5), (5, 10), (10,))]
    orders = rng.permutation(100), rng.permutation(100)  # two epochs of four batches
    batches = [order[start : start + 32] for order in orders for start in range(0, 100, 32)]
    expected = reference_training(Network(draw[:-1], draw[-1]), images, labels, batches, 0.01)
    parameters = initial_parameters([6, 5, 10], rng)
    for (variable, *_), value in zip(parameters, draw):
        variable.assign(value)
    settings = tf.constant(32), tf.constant(0.01)
    for epoch, first, last in ((0, 0, 1), (0, 1, 4), (1, 0, 4)):
        place = tf.constant(orders[epoch]), tf.constant([first, last]), tf.constant(4 * epoch)
        compiled_training()(parameters, images, labels, *place, *settings)
    for (variable, *_), value in zip(parameters, expected):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-3, atol=1e-5)


def test_the_network_has_the_asked_for_layers():
    network = train_toy(hidden_units=(16, 8, 4))
    assert [kernel.shape for kernel in network.kernels] == [(6, 16), (16, 8), (8, 4), (4, 10)]
    assert network.bias.shape == (10,)


def test_training_learns():
    images, labels = toy_data()
    network = train_toy(epochs=100, hidden_units=(64, 32))
    assert evaluate_on(images, network, labels)[0] > 0.9


def test_bfloat16_products_train_nearly_the_same_float32_network():
    images, labels = toy_data()
    recipe = SimpleNamespace(**vars(RECIPE) | {"epochs": 100, "hidden_units": (64, 32)})
    whole, half = (
        train(tf.cast(images, kind), labels, recipe, np.random.default_rng(0))
        for kind in ("float32", "bfloat16")
    )
    assert all(kernel.dtype == np.float32 for kernel in (*half.kernels, half.bias))
    assert any((a != b).any() for a, b in zip(whole.kernels, half.kernels))
    accuracy, loss = evaluate_on(images, half, labels)
    assert accuracy > 0.9 and loss == pytest.approx(evaluate_on(images, whole, labels)[1], abs=0.1)


def test_a_seed_gives_the_same_network_each_time_and_another_seed_another():
    first, again, other = train_toy(0), train_toy(0), train_toy(1)
    for a, b, c in zip(first.kernels, again.kernels, other.kernels):
        np.testing.assert_array_equal(a, b)
        assert (a != c).all()


def test_the_training_loop_is_traced_once_for_all_runs_epochs_and_settings():
    train_toy()
    traces = compiled_training().experimental_get_tracing_count()
    train_toy(seed=1, epochs=3, learning_rate=0.02, batch_size=50)
    assert compiled_training().experimental_get_tracing_count() == traces


def test_a_training_that_diverges_stops_and_says_in_which_epoch():
    with pytest.raises(
        UserError, match=r"failed in epoch \d: the loss is (nan|inf); .* below 1e\+30"
    ):
        train_toy(learning_rate=1e30, epochs=9)


def test_a_sweep_measures_every_method_and_level_and_leaves_the_network_alone():
    network, (images, labels) = train_toy(epochs=60), toy_data()
    before = [kernel.copy() for kernel in network.kernels]
    rows = sweep(network, images, labels.numpy(), [0, 0.5, 1], np.random.default_rng(0))
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        (method, sparsity)
        for method in ("weight", "neuron", "random_weight", "random_neuron")
        for sparsity in (0, 0.5, 1)
    ]
    assert [row["achieved_sparsity"] for row in rows] == [0, 0.5, 1] * 4
    dense, dense_loss = evaluate_on(images, network, labels)
    assert {row["test_accuracy"] for row in rows if row["sparsity"] == 0} == {dense}
    assert all(row["test_loss"] == pytest.approx(dense_loss, abs=1e-6) for row in rows[::3])
    # without hidden weights only the output bias is left, so all images get the same class
    only_bias = np.mean(labels.numpy() == network.bias.argmax())
    assert {row["test_accuracy"] for row in rows if row["sparsity"] == 1} == {only_bias}
    for kernel, copy in zip(network.kernels, before):
        np.testing.assert_array_equal(kernel, copy)

"""The network, its training and retraining, and the rows of an experiment."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import DEVICE, draw_kernels, recipe
from tensorflow.python.framework import kernels as registered

from network_pruning import (
    METHODS,
    UserError,
    compact,
    compiled,
    evaluate,
    initial_network,
    layer_sizes,
    make_networks,
    measure_networks,
    prune,
    prune_weights,
    train,
    train_epoch,
    trainable,
    unbiased_logits,
)

SIZES = [6, 16, 8, 6]


def toy_data(images=100, pixels=6):
    """Images whose label is their brightest pixel; the test set is the training set."""
    drawn = np.random.default_rng(0).random((images, pixels), dtype=np.float32)
    labels = drawn.argmax(axis=1)
    return SimpleNamespace(
        train_images=tf.constant(drawn),
        train_labels=tf.constant(labels),
        test_images=tf.constant(drawn),
        test_labels=labels,
    )


def train_toy(network=None, epochs=2, seed=0, **changes):
    """Train on the toy data by the recipe with changes."""
    data, rng = toy_data(), np.random.default_rng(seed)
    network = network or initial_network(SIZES, rng)
    return train(network, data.train_images, data.train_labels, epochs, recipe(**changes), rng)


def accuracy_and_loss(network):
    """Accuracy and loss on the toy data."""
    data = toy_data()
    logits = unbiased_logits(network[:-1], data.test_images) + network[-1]
    return evaluate(logits.numpy(), data.test_labels)


# ---------------------------------------------------------------------------- network, evaluation


def test_logits_are_those_of_a_hand_worked_network():
    kernels = [np.array([[1.0, -1.0]]), np.array([[2.0, 0.0], [5.0, 1.0]])]
    # 3 -> hidden (3, 0) -> (6, 0); -2 -> hidden (0, 2) -> (10, 2)
    logits = unbiased_logits(kernels, tf.constant([[3.0], [-2.0]], tf.float64))
    np.testing.assert_array_equal(logits, [[6, 0], [10, 2]])


def test_accuracy_and_loss_of_hand_worked_logits():
    logits = np.array([[math.log(3), 0.0], [0.0, math.log(4)], [0.0, 0.0], [0.0, 0.0]])
    accuracy, loss = evaluate(logits, np.array([0, 0, 0, 1]))
    assert accuracy == 0.5  # right, wrong, right (a tie goes to the first class), wrong
    assert loss == pytest.approx((math.log(4 / 3) + math.log(5) + 2 * math.log(2)) / 4)


def test_the_loss_of_large_logits_does_not_overflow():
    assert evaluate(1000 * np.eye(2, dtype=np.float32), np.array([0, 0])) == (0.5, 500)


def test_initial_weights_are_glorot_uniform_and_the_bias_is_0():
    *kernels, bias = initial_network([300, 100, 10], np.random.default_rng(0))
    limit = math.sqrt(6 / 400)
    first = kernels[0]
    assert first.dtype == np.float32 and np.abs(first).max() <= limit
    assert first.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert layer_sizes(kernels) == [300, 100, 10] and not bias.any()


# -------------------------------------------------------------------------------------- training


def reference_training(network, images, labels, batches, rate):
    """Adam (Kingma and Ba 2015, the efficient form at the end of section 2), in NumPy."""
    values = [np.array(v, np.float64) for v in network]
    first, second = ([np.zeros_like(v) for v in values] for _ in range(2))
    for step, batch in enumerate(batches, 1):
        variables = [tf.Variable(value) for value in values]
        with tf.GradientTape() as tape:
            activations = tf.constant(images[batch], tf.float64)
            for kernel in variables[:-2]:
                activations = tf.nn.relu(activations @ kernel)
            loss = tf.reduce_mean(
                tf.keras.losses.sparse_categorical_crossentropy(
                    labels[batch], activations @ variables[-2] + variables[-1], from_logits=True
                )
            )
        for i, gradient in enumerate(g.numpy() for g in tape.gradient(loss, variables)):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            corrected = rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            values[i] -= corrected * first[i] / (np.sqrt(second[i]) + 1e-8)
    return values


def test_training_is_adam_on_the_mean_loss_of_batches_of_a_permutation():
    rng = np.random.default_rng(3)
    network = [*draw_kernels([6, 5, 10], rng), rng.normal(size=10).astype(np.float32)]
    data = toy_data()
    orders = np.random.default_rng(7)
    batches = [
        order[start : start + 32]
        for order in (orders.permutation(100), orders.permutation(100))
        for start in range(0, 100, 32)
    ]
    expected = reference_training(
        network, data.train_images.numpy(), data.test_labels, batches, rate=0.01
    )
    rng = np.random.default_rng(7)
    trained = train(network, data.train_images, data.train_labels, 2, recipe(), rng)
    for values, reference in zip(trained, expected):
        np.testing.assert_allclose(values, reference, rtol=1e-3, atol=1e-5)


def test_training_learns():
    assert accuracy_and_loss(train_toy(epochs=100))[0] > 0.9


@pytest.mark.parametrize("batch_size", [1, 33, 100, 1000])
def test_a_batch_has_the_size_that_was_asked_for_and_the_last_one_what_is_left(batch_size):
    steps = tf.Variable(0.0)
    data, network = toy_data(), initial_network(SIZES, np.random.default_rng(0))
    parameters = [trainable(values) for values in network]
    order, settings = tf.range(100), (tf.constant(batch_size), tf.constant(0.0))
    loss = compiled(train_epoch)(
        parameters, steps, data.train_images, data.train_labels, order, *settings
    )
    assert steps == math.ceil(100 / batch_size)
    # at a learning rate of 0, the mean over all images, each of which counts once
    assert loss.numpy() == pytest.approx(accuracy_and_loss(network)[1], rel=1e-5)


def test_an_epoch_is_a_permutation_of_the_images_and_the_next_one_another(monkeypatch):
    orders = []

    def record(parameters, steps, images, labels, order, *settings):
        orders.append(order.numpy())
        return tf.constant(0.0)

    monkeypatch.setattr("network_pruning.compiled", lambda function: record)
    train_toy(epochs=3)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert len(orders) == 3 and (orders[0] != orders[1]).any()


def test_a_seed_gives_the_same_network_each_time_and_another_seed_another():
    first, again, other = train_toy(seed=0), train_toy(seed=0), train_toy(seed=1)
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert (a != c).all()


def test_training_is_traced_once_for_all_runs_epochs_and_settings():
    train_toy()
    traces = compiled(train_epoch).experimental_get_tracing_count()
    train_toy(seed=1, epochs=3, learning_rate=0.02, batch_size=50)
    assert compiled(train_epoch).experimental_get_tracing_count() == traces


def test_a_training_that_diverges_stops_and_says_in_which_epoch():
    with pytest.raises(
        UserError, match=r"failed in epoch \d: the loss is (nan|inf); .* below 1e\+30"
    ):
        train_toy(learning_rate=1e30, epochs=9)


@pytest.mark.parametrize(("loss", "fails"), [(178.0, False), (180.0, True), (math.nan, True)])
def test_a_loss_above_100_times_that_of_chance_is_a_failure(monkeypatch, loss, fails):
    # the toy data have 6 classes: 100 ln(6) is 179.2
    monkeypatch.setattr("network_pruning.compiled", lambda function: lambda *_: tf.constant(loss))
    if not fails:
        train_toy(epochs=1)
        return
    with pytest.raises(UserError, match=f"failed in epoch 1: the loss is {loss:g}; pass a --learn"):
        train_toy(epochs=1)


# ------------------------------------------------------------------------------------ retraining


def test_weights_of_0_stay_0_to_the_bit_and_the_others_are_trained():
    *hidden, output, bias = train_toy()
    pruned = [*(prune_weights(kernel, 0.7) for kernel in hidden), output, bias]
    again = train_toy(pruned, epochs=5)
    for before, after in zip(pruned[:-2], again):
        np.testing.assert_array_equal(after[before == 0], 0)
    assert sum(np.count_nonzero(b != a) for b, a in zip(pruned, again)) > 30
    assert accuracy_and_loss(again)[1] < accuracy_and_loss(pruned)[1]


@pytest.mark.parametrize("method", ["neuron", "weight"])
def test_retraining_compacted_is_retraining_masked(method):
    rng = np.random.default_rng(0)
    *hidden, output, bias = train_toy(initial_network([6, 32, 32, 6], rng))
    [pruned] = prune(hidden, method, [0.9], rng)
    # an output weight whose unit is gone is masked in the twin, as compaction deletes it
    output[~pruned[-1].any(axis=0)] = 0
    masked = [*pruned, output]
    small = compact(masked)
    assert layer_sizes(small) < layer_sizes(masked)
    small, masked = (train_toy([*kernels, bias], epochs=5) for kernels in (small, masked))
    for a, b in zip(small, [*compact(masked[:-1]), masked[-1]]):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_network_without_hidden_weights_is_retrained_to_its_bias():
    kernels = compact([np.zeros((6, 4), np.float32), np.ones((4, 6), np.float32)])
    first, *_, bias = train_toy([*kernels, np.zeros(6, np.float32)], epochs=20)
    assert not first.any()
    shares = np.bincount(toy_data().test_labels) / 100
    assert bias.argmax() == shares.argmax()


# -------------------------------------------------------------------------------- the experiment


def rows_of(options, run=0):
    """Rows of one run on the toy data."""
    data = toy_data()
    return measure_networks(make_networks(SIZES, data, options, run), data)[0]


def keyed(rows):
    """Rows without times, by how their networks were made."""
    return {
        (row["method"], row["sparsity"], row["retrain_epochs"]): {
            name: value for name, value in row.items() if name != "speedup"
        }
        for row in rows
    }


def test_a_run_measures_every_method_and_sparsity():
    rows = keyed(rows_of(recipe(methods=list(METHODS))))
    assert set(rows) == {(method, sparsity, 0) for method in METHODS for sparsity in (0, 0.5, 1)}
    assert rows["neuron", 0.5, 0]["layer_sizes"] == "6-8-4-6"
    for sparsity, column in ((0, "test_loss"), (1, "test_accuracy")):  # the dense one, the bias
        assert len({row[column] for key, row in rows.items() if key[1] == sparsity}) == 1
    for (_, sparsity, _), row in rows.items():
        if sparsity == 1:
            assert row["achieved_sparsity"] == 1 and row["live_fraction"] == 0


def test_retraining_adds_rows_and_changes_none():
    methods = ["weight", "neuron", "random_weight", "global_weight"]
    once = keyed(rows_of(recipe(methods=methods)))
    again = keyed(rows_of(recipe(methods=methods, retrain_epochs=3)))
    assert {key: again[key] for key in once} == once
    added = set(again) - set(once)
    assert added == {(method, s, 3) for method in (*methods, "scratch") for s in (0, 0.5, 1)}
    assert len({row["test_loss"] for key, row in again.items() if key[1:] == (0, 3)}) == 1
    assert again["scratch", 0.5, 3]["layer_sizes"] == again["neuron", 0.5, 3]["layer_sizes"]
    assert again["neuron", 0.5, 3]["test_loss"] < again["neuron", 0.5, 0]["test_loss"]


def test_networks_from_scratch_come_with_retrained_neurons_only():
    rows = keyed(rows_of(recipe(methods=["weight"], retrain_epochs=1)))
    assert {method for method, _, _ in rows} == {"weight"}


def test_rows_do_not_depend_on_which_other_methods_and_sparsities_are_asked_for():
    many = keyed(rows_of(recipe(methods=list(METHODS), retrain_epochs=1)))
    few = recipe(methods=["random_neuron", "neuron"], sparsities=[0.0, 0.5], retrain_epochs=1)
    for key, row in keyed(rows_of(few)).items():
        assert many[key] == row


def test_runs_of_a_seed_differ():
    assert rows_of(recipe(), run=0)[0]["test_loss"] != rows_of(recipe(), run=1)[0]["test_loss"]


# ----------------------------------------------------------------------------------------- a GPU


def operations(graph):
    """Every operation of a graph and its functions, each with the types of its arguments."""
    definition = graph.as_graph_def()
    for nodes in (definition.node, *(f.node_def for f in definition.library.function)):
        for node in nodes:
            yield node.op, {name: value.type for name, value in node.attr.items() if value.type}


def has_gpu_kernel(operation, types):
    """Whether TensorFlow has a kernel for GPUs of an operation on these types."""
    for kernel in registered.get_registered_kernels_for_op(operation).kernel:
        fits = all(
            types[limit.name] in limit.allowed_values.list.type
            for limit in kernel.constraint
            if limit.name in types
        )
        if fits and kernel.device_type in ("GPU", "DEFAULT"):
            return True
    return False


@pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="a TensorFlow without GPU kernels")
def test_every_operation_of_training_and_evaluation_has_a_gpu_kernel():
    network = initial_network(SIZES, np.random.default_rng(0))
    network[0][0] = 0  # so that it is masked
    images, labels = tf.zeros((10, 6)), tf.zeros(10, tf.int64)
    parameters = [trainable(values) for values in network]
    order, settings = tf.range(10, dtype=tf.int64), (tf.constant(4), tf.constant(0.1))
    graphs = [
        compiled(train_epoch).get_concrete_function(
            parameters, tf.Variable(0.0), images, labels, order, *settings
        ),
        compiled(unbiased_logits).get_concrete_function(network[:-1], images),
    ]
    used = [operation for graph in graphs for operation in operations(graph.graph)]
    assert {"ResourceApplyAdam", "MatMul", "LogSoftmax"} <= {operation for operation, _ in used}
    assert not [operation for operation in used if not has_gpu_kernel(*operation)]


@pytest.mark.skipif(not DEVICE.startswith("GPU"), reason="no GPU")
def test_a_gpu_trains_what_a_cpu_trains():
    on_gpu = accuracy_and_loss(train_toy(epochs=20))[1]
    with tf.device("CPU"):
        on_cpu = accuracy_and_loss(train_toy(epochs=20))[1]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)

"""The network, its training and retraining, and the refitting of whole networks."""

import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import DEVICE, draw_kernels, pruned_by
from tensorflow.python.framework import kernels as registered

from network_pruning import (
    Network,
    UserError,
    compact,
    evaluate,
    keras_model,
    layer_outputs,
    logits,
    new_network,
    prune_weights,
    refit_layers,
    refit_output,
    train,
)

SIZES = [6, 16, 8, 6]
IMAGES = np.random.default_rng(0).random((100, 6), dtype=np.float32)
LABELS = IMAGES.argmax(axis=1)  # the brightest pixel
TARGETS = tf.one_hot(LABELS, 6)


def train_toy(network=None, epochs=2, seed=0, targets=TARGETS, batch_size=32, learning_rate=0.01):
    """Train on the toy data."""
    rng = np.random.default_rng(seed)
    network = network or new_network(SIZES, rng)
    return train(network, tf.constant(IMAGES), targets, epochs, batch_size, learning_rate, rng)


def accuracy_and_loss(network):
    """Accuracy and loss on the toy data."""
    return evaluate(logits(network, IMAGES).numpy(), LABELS)


def assert_equal(network, other):
    """Both networks are the same to the bit."""
    for a, b in zip([*network.kernels, network.bias], [*other.kernels, other.bias]):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------- network, evaluation


def test_logits_are_those_of_a_hand_worked_network():
    network = Network([np.array([[1.0, -1.0]]), np.array([[2.0, 0.0], [5.0, 1.0]])], [1.0, 0.0])
    # 3 -> hidden (3, 0) -> (6, 0); -2 -> hidden (0, 2) -> (10, 2)
    images = tf.constant([[3.0], [-2.0]], tf.float64)
    np.testing.assert_array_equal(logits(network, images), [[7, 0], [11, 2]])
    hidden, output = layer_outputs(network, images)
    np.testing.assert_array_equal(hidden, [[3, -3], [-2, 2]])
    np.testing.assert_array_equal(output, [[6, 0], [10, 2]])


def test_accuracy_and_loss_of_hand_worked_logits():
    outputs = np.array([[math.log(3), 0.0], [0.0, math.log(4)], [0.0, 0.0], [0.0, 0.0]])
    accuracy, loss = evaluate(outputs, np.array([0, 0, 0, 1]))
    assert accuracy == 0.5  # right, wrong, right (a tie goes to the first class), wrong
    assert loss == pytest.approx((math.log(4 / 3) + math.log(5) + 2 * math.log(2)) / 4)


def test_the_loss_of_large_logits_does_not_overflow():
    assert evaluate(1000 * np.eye(2, dtype=np.float32), np.array([0, 0])) == (0.5, 500)


def test_initial_weights_are_glorot_uniform_and_the_bias_is_0():
    network = new_network([300, 100, 10], np.random.default_rng(0))
    limit = math.sqrt(6 / 400)
    [first] = network.hidden
    assert first.dtype == np.float32 and np.abs(first).max() <= limit
    assert first.std() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert network.sizes == (300, 100, 10) and not network.bias.any()


def test_a_keras_model_is_the_network():
    rng = np.random.default_rng(0)
    network = Network(draw_kernels([6, 5, 4, 10], rng), rng.normal(size=10).astype(np.float32))
    np.testing.assert_allclose(
        keras_model(network)(IMAGES), logits(network, IMAGES), rtol=1e-5, atol=1e-5
    )


# -------------------------------------------------------------------------------------- training


def reference_training(network, targets, batches, rate):
    """Adam (Kingma and Ba 2015, the efficient form at the end of section 2), in NumPy."""
    values = [np.array(v, np.float64) for v in (*network.kernels, network.bias)]
    first, second = ([np.zeros_like(v) for v in values] for _ in range(2))
    for step, batch in enumerate(batches, 1):
        variables = [tf.Variable(value) for value in values]
        with tf.GradientTape() as tape:
            outputs = logits(Network(variables[:-1], variables[-1]), IMAGES[batch].astype(float))
            crossed = targets[batch] * tf.nn.log_softmax(outputs)
            loss = -tf.reduce_mean(tf.reduce_sum(crossed, axis=1))
        for i, gradient in enumerate(g.numpy() for g in tape.gradient(loss, variables)):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            corrected = rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            values[i] -= corrected * first[i] / (np.sqrt(second[i]) + 1e-8)
    return values


@pytest.mark.parametrize("batch_size", [32, 100, 1000])
def test_training_is_adam_on_the_mean_loss_of_batches_of_a_permutation(batch_size):
    rng = np.random.default_rng(3)
    network = Network(draw_kernels([6, 5, 6], rng), rng.normal(size=6).astype(np.float32))
    probabilities = rng.dirichlet(np.ones(6), size=100).astype(np.float32)  # as a teacher's
    orders = np.random.default_rng(7)
    batches = [
        order[start : start + batch_size]
        for order in (orders.permutation(100), orders.permutation(100))
        for start in range(0, 100, batch_size)
    ]
    expected = reference_training(network, probabilities, batches, rate=0.01)
    trained = train_toy(network, 2, 7, tf.constant(probabilities), batch_size)
    for values, reference in zip([*trained.kernels, trained.bias], expected):
        np.testing.assert_allclose(values, reference, rtol=1e-3, atol=1e-5)


def test_training_learns_and_changes_no_network_in_place():
    network = new_network(SIZES, np.random.default_rng(0))
    before = Network([kernel.copy() for kernel in network.kernels], network.bias.copy())
    assert accuracy_and_loss(train_toy(network, epochs=100))[0] > 0.9
    assert_equal(network, before)


def test_a_seed_gives_the_same_network_each_time_and_another_seed_another():
    first, other = train_toy(seed=0), train_toy(seed=1)
    assert_equal(first, train_toy(seed=0))
    assert all((a != b).all() for a, b in zip(first.kernels, other.kernels))


def test_a_training_that_diverges_stops_and_says_in_which_epoch():
    message = r"failed in epoch \d: the loss is (nan|inf); .* below 1e\+30"
    with pytest.raises(UserError, match=message):
        train_toy(learning_rate=1e30, epochs=9)


@pytest.mark.parametrize(("wrong_by", "fails"), [(170, False), (190, True)])
def test_a_loss_above_100_times_that_of_chance_is_a_failure(wrong_by, fails):
    # the toy data have 6 classes: 100 ln(6) is 179.2; all images are of class 0
    network = Network([np.zeros((6, 2), "f4"), np.zeros((2, 6), "f4")], np.zeros(6, "f4"))
    network.bias[1] = wrong_by
    targets = tf.one_hot([0] * 100, 6)
    if not fails:
        train_toy(network, 1, targets=targets, learning_rate=1e-6)
        return
    with pytest.raises(UserError, match="failed in epoch 1: the loss is 190; pass a --learn"):
        train_toy(network, 1, targets=targets, learning_rate=1e-6)


# ------------------------------------------------------------------------------------ retraining


def test_weights_of_0_stay_0_to_the_bit_and_the_others_are_trained():
    network = train_toy()
    hidden = [prune_weights(kernel, 0.7) for kernel in network.hidden]
    pruned = network._replace(kernels=[*hidden, network.kernels[-1]])
    again = train_toy(pruned, epochs=5)
    for before, after in zip(hidden, again.hidden):
        np.testing.assert_array_equal(after[before == 0], 0)
        assert np.count_nonzero(after != before) > 10
    assert accuracy_and_loss(again)[1] < accuracy_and_loss(pruned)[1]


@pytest.mark.parametrize("method", ["neuron", "weight"])
def test_retraining_compacted_is_retraining_masked(method):
    network = train_toy(new_network([6, 32, 32, 6], np.random.default_rng(0)))
    kernels = [*pruned_by(method, network.hidden, 0.9), network.kernels[-1]]
    # an output weight whose unit is gone is masked in the twin, as compaction deletes it
    kernels[-1][~kernels[-2].any(axis=0)] = 0
    small = network._replace(kernels=compact(kernels))
    assert small.sizes < network.sizes
    small, masked = train_toy(small, 5), train_toy(network._replace(kernels=kernels), 5)
    for a, b in zip([*small.kernels, small.bias], [*compact(masked.kernels), masked.bias]):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_network_without_hidden_weights_is_retrained_to_its_bias():
    kernels = compact([np.zeros((6, 4), np.float32), np.ones((4, 6), np.float32)])
    trained = train_toy(Network(kernels, np.zeros(6, np.float32)), epochs=20)
    assert not trained.kernels[0].any()
    assert trained.bias.argmax() == np.bincount(LABELS).argmax()


# ------------------------------------------------------------------------------------- refitting


def test_refit_layers_feeds_each_layer_what_the_refit_ones_before_it_give():
    dense = train_toy(epochs=50)
    kernels = [*pruned_by("weight", dense.hidden, 0.5), dense.kernels[-1]]
    pruned = dense._replace(kernels=kernels)
    targets = layer_outputs(dense, IMAGES)
    refitted = refit_layers(pruned, IMAGES, targets)
    for layer, kernel in enumerate(kernels):
        np.testing.assert_array_equal(refitted.kernels[layer] == 0, kernel == 0)
    errors = [
        np.square(np.subtract(layer_outputs(network, IMAGES)[-1], targets[-1])).mean()
        for network in (pruned, refit_output(pruned, IMAGES, targets), refitted)
    ]
    assert errors[0] > 2 * errors[1] and errors[1] > 2 * errors[2]


def test_refit_output_changes_the_output_kernel_alone():
    dense = train_toy(epochs=50)
    pruned = dense._replace(kernels=[*pruned_by("weight", dense.hidden, 0.5), dense.kernels[-1]])
    refitted = refit_output(pruned, IMAGES, layer_outputs(dense, IMAGES))
    assert_equal(pruned, refitted._replace(kernels=[*refitted.hidden, dense.kernels[-1]]))
    assert (refitted.kernels[-1] != dense.kernels[-1]).any()


def test_a_dense_network_is_not_changed_by_refitting():
    dense = train_toy()
    for network in (refit_layers, refit_output):
        same = network(dense, IMAGES, layer_outputs(dense, IMAGES))
        for a, b in zip(same.kernels, dense.kernels):
            np.testing.assert_allclose(a, b, atol=1e-6)


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
def test_every_operation_of_training_has_a_gpu_kernel(monkeypatch):
    graphs = []
    compiled = tf.function

    def recording(function):
        traced = compiled(function)

        def call(order):
            graphs.append(traced.get_concrete_function(order).graph)
            return traced(order)

        return call

    monkeypatch.setattr(tf, "function", recording)
    network = new_network(SIZES, np.random.default_rng(0))
    network.kernels[0][0] = 0  # so that it is masked
    train_toy(network, epochs=1)
    used = [operation for graph in graphs for operation in operations(graph)]
    assert {"ResourceApplyAdam", "MatMul", "LogSoftmax"} <= {operation for operation, _ in used}
    assert not [operation for operation in used if not has_gpu_kernel(*operation)]


@pytest.mark.skipif(not DEVICE.startswith("GPU"), reason="no GPU")
def test_a_gpu_trains_what_a_cpu_trains():
    on_gpu = accuracy_and_loss(train_toy(epochs=20))[1]
    with tf.device("CPU"):
        on_cpu = accuracy_and_loss(train_toy(epochs=20))[1]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)

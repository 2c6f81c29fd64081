"""The network, its training and retraining, and the refitting of whole networks."""

import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import DEVICE, draw_kernels, pruned_by

from network_pruning import (
    REPAIRS,
    Network,
    UserError,
    compact,
    evaluate,
    initial_network,
    keras_model,
    layer_inputs,
    load_dataset,
    logits,
    prune_model,
    prune_weights,
    refit,
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
    network = network or initial_network(SIZES, rng)
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
    first, second = layer_inputs(network, images)
    np.testing.assert_array_equal(first, images)
    np.testing.assert_array_equal(second, [[3, 0], [0, 2]])


def test_accuracy_and_loss_of_hand_worked_logits():
    outputs = np.array([[math.log(3), 0.0], [0.0, math.log(4)], [0.0, 0.0], [0.0, 0.0]])
    accuracy, loss = evaluate(outputs, np.array([0, 0, 0, 1]))
    assert accuracy == 0.5  # right, wrong, right (a tie goes to the first class), wrong
    assert loss == pytest.approx((math.log(4 / 3) + math.log(5) + 2 * math.log(2)) / 4)


def test_the_loss_of_large_logits_does_not_overflow():
    assert evaluate(1000 * np.eye(2, dtype=np.float32), np.array([0, 0])) == (0.5, 500)


def test_initial_weights_are_glorot_uniform_and_the_bias_is_0():
    network = initial_network([300, 100, 10], np.random.default_rng(0))
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
    network = initial_network(SIZES, np.random.default_rng(0))
    before = Network([kernel.copy() for kernel in network.kernels], network.bias.copy())
    assert accuracy_and_loss(train_toy(network, epochs=100))[0] > 0.6  # at least 0.85 in 10 seeds
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
        assert np.count_nonzero(after != before) > 5  # at least 14 in 10 seeds
    # at most 0.97 of it in 10 seeds
    assert accuracy_and_loss(again)[1] < accuracy_and_loss(pruned)[1]


@pytest.mark.parametrize("method", ["neuron", "weight"])
def test_retraining_compacted_is_retraining_masked(method):
    network = train_toy(initial_network([6, 32, 32, 6], np.random.default_rng(0)))
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


def products(network):
    """What each layer computes for the toy images before bias and activation."""
    inputs = layer_inputs(network, IMAGES)
    return [np.asarray(x) @ kernel for x, kernel in zip(inputs, network.kernels)]


def test_refit_layers_feeds_each_layer_what_the_refit_ones_before_it_give():
    dense = train_toy(epochs=50)
    kernels = [*pruned_by("weight", dense.hidden, 0.5), dense.kernels[-1]]
    pruned = dense._replace(kernels=kernels)
    refitted = refit_layers(pruned, IMAGES, products(dense))
    inputs = layer_inputs(refitted, IMAGES)
    for layer, wanted in enumerate(products(dense)):
        expected = refit(kernels[layer], inputs[layer], wanted)
        np.testing.assert_allclose(refitted.kernels[layer], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(refitted.kernels[layer] == 0, kernels[layer] == 0)


def test_refit_output_changes_the_output_kernel_alone():
    dense = train_toy(epochs=50)
    pruned = dense._replace(kernels=[*pruned_by("weight", dense.hidden, 0.5), dense.kernels[-1]])
    refitted = refit_output(pruned, IMAGES, products(dense))
    assert_equal(pruned, refitted._replace(kernels=[*refitted.hidden, dense.kernels[-1]]))
    expected = refit(dense.kernels[-1], layer_inputs(pruned, IMAGES)[-1], products(dense)[-1])
    np.testing.assert_allclose(refitted.kernels[-1], expected, rtol=1e-3, atol=1e-4)
    assert (refitted.kernels[-1] != dense.kernels[-1]).any()


def test_a_dense_network_is_not_changed_by_repairs():
    dense = train_toy()
    for repair in REPAIRS.values():
        for a, b in zip(repair(dense, IMAGES, products(dense)).kernels, dense.kernels):
            np.testing.assert_allclose(a, b, atol=1e-5)


# ---------------------------------------------------------------------------------- Keras models

keras = tf.keras


def digits_model(*ends):
    """A trained model of digits; also the training images as whole numbers and the test set."""
    digits = load_dataset("digits", None)
    images = np.round(15 * digits.train_images.numpy()).astype(np.int64)
    labels = digits.train_targets.numpy().argmax(axis=1)
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(units, "relu") for units in (300, 100)]
    layers = [keras.layers.Flatten(), *hidden, keras.layers.Dropout(0.1), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input([64]), keras.layers.Rescaling(1 / 15), *layers, *ends])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not ends)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(images, labels, epochs=10, verbose=0)
    return model, images, (15 * digits.test_images.numpy(), digits.test_labels)


@pytest.mark.parametrize("ends", [[], [keras.layers.Activation("softmax")]], ids=["logits", "soft"])
def test_a_keras_model_is_pruned_but_for_its_classifier_and_refit(ends):
    model, images, test = digits_model(*ends)
    before = [array.copy() for array in model.get_weights()]
    pruned = prune_model(model, 0.9, images[:1000])
    for array, copy in zip(model.get_weights(), before):
        np.testing.assert_array_equal(array, copy)
    first, first_bias, second, second_bias, classifier, _ = pruned.get_weights()
    assert np.count_nonzero(first == 0) == round(0.9 * first.size)
    assert np.count_nonzero(second == 0) == round(0.9 * second.size)
    assert classifier.all()
    np.testing.assert_array_equal(first_bias, before[1])
    np.testing.assert_array_equal(second_bias, before[3])

    unrepaired = keras.models.clone_model(model)
    kernels = [prune_weights(kernel, 0.9) for kernel in (before[0], before[2])]
    unrepaired.set_weights([kernels[0], before[1], kernels[1], *before[3:]])
    wanted = model.predict(images, verbose=0)
    errors = [
        np.square(network.predict(images, verbose=0) - wanted).mean()
        for network in (pruned, unrepaired)
    ]
    assert errors[0] < 0.1 * errors[1]  # at most 0.01 in 8 seeds
    pruned.compile(metrics=["accuracy"])
    # at most 0.034 below in 8 seeds
    assert pruned.evaluate(*test, verbose=0)[1] > model.evaluate(*test, verbose=0)[1] - 0.1


def test_a_functional_model_with_a_branch_is_pruned_as_well():
    inputs = keras.Input([6])
    hidden = keras.layers.Dense(8, "relu")(inputs)
    joined = keras.layers.Concatenate()([inputs, keras.layers.Dense(8, "relu")(hidden)])
    model = keras.Model(inputs, keras.layers.Dense(6)(joined))
    pruned = prune_model(model, 0.5, IMAGES)
    shares = [np.mean(layer.kernel == 0) for layer in pruned.layers if hasattr(layer, "kernel")]
    assert shares == [0.5, 0.5, 0]
    # as nothing was pruned there, the classifier is refit to what the dense model computes
    whole = prune_model(model, 0, IMAGES)
    np.testing.assert_allclose(whole(IMAGES), model(IMAGES), atol=1e-5)


class Halved(keras.layers.Dense):
    """A layer that multiplies by something else than its kernel."""

    def call(self, inputs):
        return super().call(inputs) / 2


@pytest.mark.parametrize("kind", ["adapters", "quantized", "subclass"])
def test_a_keras_layer_whose_kernel_is_not_what_it_multiplies_by_is_refused(kind):
    first = Halved(8) if kind == "subclass" else keras.layers.Dense(8)
    model = keras.Sequential([keras.Input([6]), first, keras.layers.Dense(6)])
    if kind == "adapters":
        first.enable_lora(2)
    if kind == "quantized":
        first.quantize("int8")
    with pytest.raises(ValueError, match=f"layer {first.name} is no plain Dense layer: it has"):
        prune_model(model, 0.5, IMAGES)


def test_a_keras_model_without_hidden_dense_layers_is_refused():
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(6)])
    with pytest.raises(ValueError, match="no Dense layers before its classifier"):
        prune_model(model, 0.5, IMAGES)


# ----------------------------------------------------------------------------------------- a GPU


@pytest.mark.skipif(not DEVICE.startswith("GPU"), reason="no GPU")
def test_a_gpu_trains_what_a_cpu_trains():
    on_gpu = accuracy_and_loss(train_toy(epochs=20))[1]
    with tf.device("CPU"):
        on_cpu = accuracy_and_loss(train_toy(epochs=20))[1]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)

#!/usr/bin/env python3
"""Sparsity against accuracy of pruned MNIST and Fashion-MNIST classifiers.

Trains dense ReLU networks, prunes them by weight magnitude and by the L2 norm of neurons, with
random pruning as the baseline, and plots the test accuracy of what is left.

    python network_pruning.py             writes a CSV and two PNGs per data set to plots/
    python network_pruning.py --help      lists the options

The pruning functions are NumPy in, NumPy out, for the kernels of Dense and Conv layers:

    from network_pruning import prune_neurons, prune_weights
"""

import argparse
import contextlib
import functools
import gzip
import math
import numbers
import os
import platform
import shutil
import socket
import sys
import tempfile
import textwrap
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

# TensorFlow, pandas and Matplotlib take seconds to import: --help and `import network_pruning` do
# without them.
tf = None  # set by `configure_tensorflow`

# ---------------------------------------------------------------------------------- constants

HIDDEN_UNITS = (1000, 1000, 500, 200)
EPOCHS = 10
BATCH_SIZE = 128  # images
LEARNING_RATE = 1e-3
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}  # the defaults of TensorFlow 1
PRECISIONS = ("float32", "bfloat16")  # of the matrix products in training; the rest is float32
RUNS = 3  # networks per data set
SPARSITIES = (0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)

BATCHES_PER_CALL = 50  # of TensorFlow; Python then sees to the progress bar and to Ctrl-C
FAILED_LOSS = 2  # times the loss of chance, ln(classes); untrained networks are below
TIMING_ROUNDS = 3
DECIMALS = 6  # in the CSV

DOWNLOADED = ("mnist", "fashion_mnist")  # by keras.datasets
BUNDLED = "digits"  # with scikit-learn
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "scikit-learn digits"}
IDX_FILES = {  # published name: dimensions
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
IDX_UNSIGNED_BYTE = 8  # the header's code for the type of the elements
IDX_LIMIT = 2**30  # bytes, unpacked; MNIST's largest file has 47 million
DOWNLOAD_TIMEOUT = 10  # seconds without data


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong and how to fix it."""


# ------------------------------------------------------------------------------------ network


class Network(NamedTuple):
    """Kernels [fan_in, units] from first to output, and the output layer's bias [classes].

    Hidden layers have no bias: a unit without incoming weights outputs 0, it really is gone.
    """

    kernels: list
    bias: np.ndarray


def initial_network(sizes, rng):
    """Draw a network for layers of these sizes, the input's first (Glorot and Bengio 2010)."""
    kernels = []
    for fan_in, units in zip(sizes, sizes[1:]):
        limit = math.sqrt(6 / (fan_in + units))
        kernels.append(rng.uniform(-limit, limit, (fan_in, units)).astype(np.float32))
    return Network(kernels, np.zeros(sizes[-1], np.float32))


def layer_sizes(kernels):
    """Sizes of the layers, the input's first."""
    return [kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)]


def count_weights(kernels):
    """Number of weights, zeros included."""
    return sum(kernel.size for kernel in kernels)


def unbiased_logits(kernels, images):
    """Logits [n, classes] of images [n, pixels] before the output bias is added, in float32.

    The matrix products have the precision of the images.
    """
    *hidden, output = [tf.cast(kernel, images.dtype) for kernel in kernels]
    activations = images
    for kernel in hidden:
        activations = tf.nn.relu(tf.matmul(activations, kernel))
    return tf.cast(tf.matmul(activations, output), tf.float32)


@functools.cache
def compiled(function):
    """Return `function` as a TensorFlow graph, which is traced once for each set of shapes."""
    return tf.function(function)


# ----------------------------------------------------------------------------------- training


def train_batches(parameters, steps, images, labels, order, start, stop, batch_size, rate):
    """Train on images[order[start:stop]], batch by batch, and return the mean loss.

    parameters: for each kernel, and last for the bias, the variable itself, Adam's two moments
    and a mask of what is trained, or None for all. steps: variable that counts Adam's steps.
    rate: learning rate.
    """
    total, variables = 0.0, [variable for variable, *_ in parameters]
    for first in tf.range(start, stop, batch_size):
        tf.autograph.experimental.set_loop_options(parallel_iterations=1)  # steps are sequential
        batch = order[first : first + batch_size]
        with tf.GradientTape() as tape:
            logits = unbiased_logits(variables[:-1], tf.gather(images, batch)) + variables[-1]
            # not the sparse loss, whose fused operation has no deterministic GPU kernel
            targets = tf.one_hot(tf.gather(labels, batch), logits.shape[1])
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
        steps.assign_add(1.0)
        for parameter, gradient in zip(parameters, tape.gradient(loss, variables)):
            apply_adam(*parameter, gradient, steps, rate)
        total += tf.reduce_sum(losses)
    return total / tf.cast(stop - start, tf.float32)


def apply_adam(variable, m, v, mask, gradient, steps, rate):
    """Update a variable by a step of Adam (Kingma and Ba 2015), but not where the mask is 0.

    This is TensorFlow's one fused operation; Keras 3's Adam is a chain of small ones.
    """
    gradient = gradient if mask is None else gradient * mask
    state = {"var": variable.handle, "m": m.handle, "v": v.handle}
    powers = {"beta1_power": ADAM["beta1"] ** steps, "beta2_power": ADAM["beta2"] ** steps}
    tf.raw_ops.ResourceApplyAdam(grad=gradient, lr=rate, **state, **powers, **ADAM)


def trainable(values):
    """Make a parameter of `train_batches`; weights of 0 in a kernel are masked."""
    masked = values.ndim > 1 and not values.all()
    mask = tf.constant(values != 0, tf.float32) if masked else None
    return [tf.Variable(values), tf.Variable(0 * values), tf.Variable(0 * values), mask]


def train(network, images, labels, epochs, options, rng, report=lambda stage, work: None):
    """Return a network trained further by Adam on softmax cross-entropy; weights of 0 stay 0.

    An epoch is a permutation of the images; Adam starts afresh. images: tensor [n, pixels] in
    [0, 1], float32 or bfloat16, which is the precision of the matrix products. labels: tensor [n]
    of int64. options: has batch_size and learning_rate. rng: draws the order of the images.
    report: is called with the epoch and the multiply-adds done since the last call. Raises
    UserError if the loss is not finite, or far above that of chance in the end.
    """
    parameters = [trainable(values) for values in (*network.kernels, network.bias)]
    steps, train_some = tf.Variable(0.0), compiled(train_batches)
    # tensors, since TensorFlow would trace anew for every other Python number
    batch_size, rate = tf.constant(options.batch_size), tf.constant(options.learning_rate)
    span = BATCHES_PER_CALL * options.batch_size
    for epoch in range(1, epochs + 1):
        order = tf.constant(rng.permutation(len(images)))
        for start in range(0, len(images), span):
            stop = min(start + span, len(images))
            part = order, tf.constant(start), tf.constant(stop)
            loss = float(train_some(parameters, steps, images, labels, *part, batch_size, rate))
            # the backward pass has two products for each one of the forward pass
            report(f"epoch {epoch}/{epochs}", 3 * (stop - start) * count_weights(network.kernels))
        limit = FAILED_LOSS * math.log(network.bias.size) if epoch == epochs else math.inf
        if not loss < limit:  # or not a number
            raise UserError(
                f"training failed in epoch {epoch}: the loss is {loss:g}; "
                f"pass a --learning-rate below {options.learning_rate:g}"
            )
    *kernels, bias = [variable.numpy() for variable, *_ in parameters]
    return Network(kernels, bias)


# ------------------------------------------------------------------------------------ pruning
# NumPy in, NumPy out. The weights or units of each kernel are ranked, the least important first;
# every level of sparsity removes the head of the same ranking.


def prune_weights(kernel, sparsity):
    """Return a copy of a kernel with its weights of smallest magnitude set to 0.

    One-shot magnitude pruning (Han et al. 2015, "Learning both Weights and Connections for
    Efficient Neural Networks"). Exactly `round(sparsity * kernel.size)` weights are removed, as by
    torch.nn.utils.prune; of equal ones the first in C order go first. A higher sparsity removes a
    superset of what a lower one removes.

    kernel: real numbers [fan_in, units], or [..., units] as in a convolution, finite. sparsity: a
    fraction in [0, 1]. Raises ValueError for anything else.
    """
    kernel = check_prunable(kernel, sparsity)
    return zero_lowest(kernel, rank(magnitudes(kernel)), round(sparsity * kernel.size))


def prune_neurons(kernel, sparsity):
    """Return a copy of a kernel with its units of smallest L2 norm set to 0.

    A unit's norm is that of its incoming weights, which are all removed with it (Li et al. 2017,
    "Pruning Filters for Efficient ConvNets", there with the L1 norm). Exactly
    `round(sparsity * units)` units are removed; of equal ones the first go first. A higher sparsity
    removes a superset of what a lower one removes. A removed unit that has a bias still outputs a
    constant: set its bias to 0 as well.

    kernel: real numbers [fan_in, units], or [..., units] as in a convolution, finite. sparsity: a
    fraction in [0, 1]. Raises ValueError for anything else.
    """
    kernel = check_prunable(kernel, sparsity)
    return zero_lowest(kernel, rank(unit_norms(kernel)), round(sparsity * kernel.shape[-1]))


def check_prunable(kernel, sparsity):
    """Return `kernel` as an array; raise ValueError if it or `sparsity` is unfit for pruning."""
    kernel = np.asarray(kernel)
    if kernel.ndim < 2:
        raise ValueError(f"a kernel has shape [fan_in, units], not {list(kernel.shape)}")
    if kernel.dtype.kind not in "fiu" or not np.isfinite(kernel).all():
        raise ValueError(
            f"a kernel has finite real weights; this one, of {kernel.dtype}, has others"
        )
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity <= 1:  # or not a number
        raise ValueError(f"sparsity is a fraction in [0, 1], not {sparsity!r}")
    return kernel


def rank(scores):
    """Place of each score in ascending order, from 0; of equal scores the first comes first."""
    places = np.empty(scores.size, np.int64)
    places[np.argsort(scores, axis=None, kind="stable")] = np.arange(scores.size)
    return places.reshape(scores.shape)


def zero_lowest(kernel, ranks, count):
    """Copy a kernel [..., units] with what ranks below `count` set to 0.

    ranks: of the weights, in the shape of the kernel, or of the units, [units].
    """
    return np.where(ranks >= count, kernel, kernel.dtype.type(0))


def magnitudes(kernel, rng=None):
    """Magnitude of each weight, in the shape of the kernel."""
    return np.abs(kernel, dtype=np.float64)  # in which no integer's magnitude overflows


def unit_norms(kernel, rng=None):
    """L2 norm of each unit's incoming weights, [units]."""
    # float64, in which the squares of float32 weights neither overflow nor vanish
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), axis=0)


def random_weights(kernel, rng):
    """A random score for each weight, in the shape of the kernel."""
    return rng.permutation(kernel.size).reshape(kernel.shape)


def random_units(kernel, rng):
    """A random score for each unit, [units]."""
    return rng.permutation(kernel.shape[-1])


def layer_by_layer(kernels, ranks, sparsity):
    """How many of the ranks to remove from each kernel: the same share of all."""
    return [round(sparsity * layer.size) for layer in ranks]


def as_neurons(kernels, ranks, sparsity):
    """How many weights to remove from each kernel, to keep as many as neuron pruning leaves live.

    Some of those kept may end in units that nothing else reaches, and so be dead themselves.
    """
    classes = np.ones((kernels[-1].shape[1], 1))  # an output layer that uses every unit
    *live, _ = compact([*(prune_neurons(kernel, sparsity) for kernel in kernels), classes])
    return [kernel.size - np.count_nonzero(left) for kernel, left in zip(kernels, live)]


def together(kernels, ranks, sparsity):
    """How many weights to remove from each kernel: those among the smallest of all kernels.

    That is the rule of torch's `global_unstructured`.
    """
    scores = np.concatenate([magnitudes(kernel).ravel() for kernel in kernels])
    layers = np.repeat(np.arange(len(kernels)), [kernel.size for kernel in kernels])
    lowest = np.argsort(scores, kind="stable")[: round(sparsity * scores.size)]
    return np.bincount(layers[lowest], minlength=len(kernels))


class Method(NamedTuple):
    """What a method scores in a kernel, and how many of the lowest it removes from each layer."""

    score: object
    count: object


SCRATCH = "scratch"  # takes the layer sizes of a neuron-pruned network and trains afresh
METHODS = {
    "weight": Method(magnitudes, layer_by_layer),
    "neuron": Method(unit_norms, layer_by_layer),
    "matched_weight": Method(magnitudes, as_neurons),
    "random_weight": Method(random_weights, layer_by_layer),
    "random_neuron": Method(random_units, layer_by_layer),
    "global_weight": Method(magnitudes, together),
    SCRATCH: Method(unit_norms, layer_by_layer),
}


def prune(network, method, sparsities, rng):
    """Yield each sparsity, the share of hidden weights set to 0, and the compacted network.

    The output layer is never pruned. method: a key of METHODS. rng: draws the random scores.
    """
    *hidden, output = network.kernels
    score, count = METHODS[method]
    ranks = [rank(score(kernel, rng)) for kernel in hidden]
    for sparsity in sparsities:
        counts = count(hidden, ranks, sparsity)
        pruned = [zero_lowest(*layer) for layer in zip(hidden, ranks, counts)]
        achieved = 1 - sum(map(np.count_nonzero, pruned)) / count_weights(hidden)
        yield sparsity, round(achieved, DECIMALS), Network(compact([*pruned, output]), network.bias)


def compact(kernels):
    """Return the kernels of a smaller dense network that computes the same.

    A unit that no input reaches through weights other than 0, or that reaches no output, is
    deleted with its column and its row; inputs and outputs stay. That is exact for ReLU layers
    without bias, where a unit without incoming weights outputs relu(0) = 0, and in training too,
    if weights of 0 stay 0: the deleted ones would get no gradient.

    kernels: [fan_in, units] each, first to output, unchanged. A layer that loses all its units
    gets one whose weights are 0, since frameworks have no layers without units. Raises ValueError
    for anything else.
    """
    kernels = [np.asarray(kernel) for kernel in kernels]
    shapes = [kernel.shape for kernel in kernels]
    chained = all(before[-1:] == after[:1] for before, after in zip(shapes, shapes[1:]))
    if not kernels or {len(shape) for shape in shapes} != {2} or not chained:
        raise ValueError(
            f"compact takes kernels [fan_in, units] of consecutive layers, not {shapes}; leave out "
            "the output bias; units with hidden biases cannot be deleted exactly"
        )
    present = [kernel != 0 for kernel in kernels]
    reached = [np.ones(shapes[0][0], bool)]
    for weights in present:
        reached.append(weights[reached[-1]].any(axis=0))
    useful = [np.ones(shapes[-1][1], bool)]
    for weights in reversed(present):
        useful.insert(0, weights[:, useful[0]].any(axis=1))
    kept = [from_input & to_output for from_input, to_output in zip(reached, useful)]
    kept[0][:] = kept[-1][:] = True  # inputs and outputs
    small = [kernel[np.ix_(*ends)] for kernel, ends in zip(kernels, zip(kept, kept[1:]))]
    return [np.pad(kernel, [(0, not units) for units in kernel.shape]) for kernel in small]


# ----------------------------------------------------------------------------- the experiment


class Variant(NamedTuple):
    """How a network was made from the dense one."""

    method: str
    sparsity: float
    retrain_epochs: int
    achieved_sparsity: float  # share of the hidden weights that pruning set to 0


def draws(seed, run, purpose):
    """Make a random generator for a purpose, so that no option changes what another draws."""
    return np.random.default_rng([seed, run, *purpose.encode()])


def generate_networks(sizes, data, options, run, report):
    """Train a dense network; yield every network made from it, each with its Variant.

    Every level prunes the trained network. Pruned networks are retrained compacted. At sparsity 0
    all methods have the dense network.
    """

    def learn(network, epochs, purpose):
        rng, stage = draws(options.seed, run, purpose), functools.partial(report, purpose)
        return train(network, data.train_images, data.train_labels, epochs, options, rng, stage)

    more = options.retrain_epochs
    dense = learn(initial_network(sizes, draws(options.seed, run, "init")), options.epochs, "dense")
    dense_again = learn(dense, more, "dense again")
    for method in options.methods:
        levels = prune(dense, method, options.sparsities, draws(options.seed, run, method))
        for sparsity, achieved, network in levels:
            if method != SCRATCH:
                yield Variant(method, sparsity, 0, achieved), network
            if not more:
                continue
            purpose = f"{method} {sparsity}"
            if sparsity == 0:
                network = dense_again
            elif method == SCRATCH:
                rng = draws(options.seed, run, f"init {purpose}")
                fresh = initial_network(layer_sizes(network.kernels), rng)
                network = learn(fresh, options.epochs + more, purpose)
            else:
                network = learn(network, more, purpose)
            yield Variant(method, sparsity, more, achieved), network


def tensors(network):
    """Copy the kernels of a network to the device."""
    return [tf.constant(kernel) for kernel in network.kernels]


def evaluate(logits, labels):
    """Accuracy in [0, 1] and mean cross-entropy in nats of logits [n, classes]."""
    logits = logits.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return np.mean(logits.argmax(axis=1) == labels), losses.mean()


@np.errstate(all="ignore")  # a loss that is not finite is an error of its own
def measure(network, dense_weights, data):
    """Measure a compacted network on the test set; the README describes the columns.

    dense_weights: number of hidden weights before pruning. Raises UserError if training left a
    network whose outputs are not finite.
    """
    *hidden, _ = network.kernels
    logits = compiled(unbiased_logits)(tensors(network), data.test_images).numpy()
    accuracy, loss = evaluate(logits + network.bias, data.test_labels)
    if not math.isfinite(loss):
        raise UserError("training failed in its last step; pass a lower --learning-rate")
    measured = {
        "test_accuracy": accuracy,
        "unbiased_accuracy": evaluate(logits, data.test_labels)[0],
        "test_loss": loss,
        "live_fraction": sum(map(np.count_nonzero, hidden)) / dense_weights,
        "stored_fraction": count_weights(hidden) / dense_weights,
    }
    row = {name: round(float(value), DECIMALS) for name, value in measured.items()}
    return row | {"layer_sizes": "-".join(map(str, layer_sizes(network.kernels)))}


def time_networks(networks, images):
    """Time a pass over `images` for networks by name; return the best seconds of each.

    Every round visits every network once, so that a change of the machine's pace meets all alike.
    """
    kernels = {name: tensors(network) for name, network in networks.items()}
    seconds = dict.fromkeys(networks, math.inf)
    for _ in range(TIMING_ROUNDS):
        for name in networks:
            began = time.perf_counter()
            compiled(unbiased_logits)(kernels[name], images)
            tf.test.experimental.sync_devices()  # waits for a GPU, without copying the result
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def measure_networks(networks, data, report):
    """Measure pairs of Variant and Network, the dense one first; return a row for each.

    Only the layer sizes decide how fast a network is, so each of them is timed once.
    """
    rows, of_sizes = [], {}
    for variant, network in networks:
        if not rows:
            dense_weights = count_weights(network.kernels[:-1])
        rows.append(variant._asdict() | measure(network, dense_weights, data))
        of_sizes.setdefault(rows[-1]["layer_sizes"], network)
        work = len(data.test_labels) * count_weights(network.kernels)
        report(f"{variant.method} {variant.sparsity}", "measured", work)
    seconds = time_networks(of_sizes, data.test_images)
    for row in rows:
        speedup = seconds[rows[0]["layer_sizes"]] / seconds[row["layer_sizes"]]
        row["speedup"] = round(speedup, DECIMALS)
    return rows


def planned_work(dataset, options):
    """Estimate the multiply-adds of a run, for the progress bar."""
    pixels, *hidden, classes = dataset.layer_sizes(options.hidden_units)

    def weights(kept):
        sizes = [pixels, *(kept * units for units in hidden), classes]
        return sum(fan_in * units for fan_in, units in zip(sizes, sizes[1:]))

    trained, tested = 3 * len(dataset.train_images), len(dataset.test_images)
    work = weights(1) * trained * (options.epochs + options.retrain_epochs)
    for method in options.methods:
        epochs = options.retrain_epochs + options.epochs * (method == SCRATCH)
        for sparsity in options.sparsities:
            kept = 1 if method.endswith("weight") else 1 - sparsity
            work += weights(kept) * (trained * epochs * (sparsity > 0) + tested)
    return work


def run_dataset(dataset, options, device, bar):
    """Run the experiment on one data set; write the results after every run."""
    data, sizes = on_device(dataset, options.precision), dataset.layer_sizes(options.hidden_units)
    path, rows = options.output_dir / f"{dataset.name}.csv", []
    settings = {name: getattr(options, name) for name in SETTINGS} | {"device": device}
    settings["versions"] = f"tensorflow {tf.__version__}, numpy {np.__version__}"
    for run in range(options.runs):
        name, began = f"{dataset.title}, run {run + 1} of {options.runs}", time.monotonic()

        def report(made, stage, work, name=name):
            bar.set_description_str(f"{name}: {made}, {stage}", refresh=False)
            bar.update(work)

        networks = generate_networks(sizes, data, options, run, report)
        if options.save_models and run == 0:
            networks = saving_models(networks, path.parent, dataset.name, options.retrain_epochs)
        measured = measure_networks(networks, data, report)
        compiled.cache_clear()  # or the graphs of all sizes of all runs would stay in memory
        key = {"dataset": dataset.name, "run": run, "seed": options.seed}
        rows += [key | row | settings for row in measured]
        write_results(path, rows)
        accuracy, seconds = measured[0]["test_accuracy"], time.monotonic() - began
        say(f"{name}: dense test accuracy {accuracy:.4f}, {seconds:.0f} s, saved in {path}")
    say(f"\n{dataset.title}: test accuracy, mean \u00b1 standard deviation\n{table(rows)}\n")


# ------------------------------------------------------------------------------------ results


@contextlib.contextmanager
def replacing(path):
    """Yield a path to write to, whose file then atomically replaces `path`.

    Raises UserError if it cannot be written; the file at `path` is then the earlier one.
    """
    try:
        # a folder of its own: another process may be writing the same file
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            yield Path(folder, path.name)
            os.replace(Path(folder, path.name), path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def keras_model(network):
    """Build a compiled keras.Sequential of a network: images [n, pixels] in [0, 1] to logits."""
    keras = tf.keras
    pixels, *hidden, classes = layer_sizes(network.kernels)
    layers = [keras.layers.Dense(units, "relu", use_bias=False) for units in hidden]
    model = keras.Sequential([keras.Input([pixels]), *layers, keras.layers.Dense(classes)])
    model.set_weights([*network.kernels, network.bias])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])  # SGD keeps no state to save
    return model


def saving_models(networks, folder, name, retrain_epochs):
    """Pass networks on, saving the neuron-pruned ones in their final state as .keras files."""
    for variant, network in networks:
        if variant.method == "neuron" and variant.retrain_epochs == retrain_epochs:
            with replacing(folder / f"{name}-neuron-{variant.sparsity}.keras") as temporary:
                keras_model(network).save(temporary)
        yield variant, network


def write_results(path, rows):
    """Write rows to a CSV file and draw its figures."""
    import pandas

    with replacing(path) as temporary:
        pandas.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
    draw_figures(path)


def table(rows):
    """Lay out mean and standard deviation over runs of test accuracy, a line per sparsity."""
    import pandas

    def cell(values):
        spread = f" \u00b1 {values.std():.4f}" if len(values) > 1 else ""
        return f"{values.mean():.4f}{spread}"

    levels = ["retrain_epochs", "sparsity", "method"]
    cells = pandas.DataFrame(rows).groupby(levels, sort=False)["test_accuracy"].agg(cell)
    return cells.unstack(fill_value="").rename_axis(columns=None).sort_index().to_string()


# ------------------------------------------------------------------------------------ figures
# Drawn from the CSV alone. Blue and orange differ in hue for every kind of colour vision and in
# lightness when printed in grey; the random baselines are thin and lie behind.

STYLES = {  # label, colour, marker, line
    "weight": ("weights, by magnitude", "#00508f", "o", "-"),
    "neuron": ("neurons, by L2 norm", "#e07b00", "s", "--"),
    "matched_weight": ("weights, matched to neurons", "#45a5e0", "^", "-"),
    "global_weight": ("weights, all layers together", "#9040b0", "D", "-"),
    "random_weight": ("random weights", "#707070", "o", ":"),
    "random_neuron": ("random neurons", "#a0a0a0", "s", ":"),
    "scratch": ("small networks from scratch", "#2a8000", "v", "-."),
}
SPARSITY_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
SHARE_TICKS = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
SPEEDUP_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LEAST_KEPT = 10**-3.5  # where the logarithmic axis shows a sparsity of 1
CLOSE_UP = (0.05, 0.01)  # below and above the dense accuracy
MAIN_INCHES, PANEL_INCHES, DPI = (5.4, 6.8), (3.8, 3.3), 160


def draw(ax, rows, x, y, methods=STYLES, faint=False):
    """Draw column y against column x: for each method the mean over runs, and the spread.

    faint: only the mean, thin.
    """
    for method in methods:
        chosen = rows[rows["method"] == method]
        if chosen.empty:
            continue
        label, color, marker, line = STYLES[method]
        places = chosen.groupby("sparsity")[x].mean()
        runs = chosen.pivot(index="sparsity", columns="run", values=y)
        mean, deviation = runs.mean(axis=1), runs.std(axis=1)  # not a number for a single run
        if faint:
            ax.plot(places, mean, ls=line, color=color, lw=0.8, label=label)
            continue
        width = 1 if method.startswith("random") else 2
        ax.fill_between(places, mean - deviation, mean + deviation, color=color, alpha=0.2, lw=0)
        ax.plot(places, runs, lw=0.5, color=color, alpha=0.2)
        look = {"ls": line, "lw": width, "marker": marker, "ms": 2.5 * width, "zorder": 2 + width}
        ax.plot(places, mean, color=color, label=label, **look)
    ax.grid(color="#dddddd", lw=0.6)


def set_ticks(axis, ticks, values, label):
    """Put on an axis those of the ticks that lie within the values, or if few do, both ends.

    label: a format string of x, or a function of the value and its position.
    """
    inside = [tick for tick in ticks if values.min() <= tick <= values.max()]
    axis.set_ticks(inside if len(inside) > 2 else sorted({values.min(), values.max()}))
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(label)


def set_sparsity_axis(ax, rows, label="{x:g}"):
    """Make the x axis logarithmic in what is kept, so that 0.9 to 0.99 is as wide as 0 to 0.9."""

    def decades(sparsity):
        return -np.log10(np.maximum(1 - sparsity, LEAST_KEPT))

    ax.set_xscale("function", functions=(decades, lambda decades: 1 - 10.0**-decades))
    set_ticks(ax.xaxis, SPARSITY_TICKS, rows["sparsity"], label)
    ax.set_xlim(-0.1, 1 - 0.8 * max(1 - rows["sparsity"].max(), LEAST_KEPT))


def percent(share, position):
    """Label of a share in percent, without the sign."""
    return f"{100 * share:g}"


def new_figure(rows, inches):
    """Make a figure with what was run in small print, for a picture that travels alone."""
    from matplotlib.figure import Figure

    row = rows.iloc[0]
    caption = (
        f"{row['layer_sizes']} with ReLU; {row['epochs']} epochs of Adam at a rate of "
        f"{row['learning_rate']:g}, batches of {row['batch_size']}, {row['precision']}. Mean, "
        f"standard deviation (band) and single runs (thin); runs: {rows['run'].nunique()}, seed: "
        f"{row['seed']}. {row['device']}; {row['versions']}."
    )
    figure = Figure(inches, DPI, layout="constrained")
    figure.supxlabel(textwrap.fill(caption, round(17 * inches[0])), fontsize=7, color="#444444")
    return figure


def add_legend(figure, axes, title, columns):
    """Put a title and one legend for all axes above them."""
    lines = {line.get_label(): line for ax in axes for line in ax.lines}
    shown = {label: line for label, line in lines.items() if not label.startswith("_")}
    figure.legend(shown.values(), shown, title=title, title_fontsize="large", ncols=columns,
                  loc="outside upper center", frameon=False)  # fmt: skip


def draw_reproduction(title, rows):
    """Draw test accuracy against sparsity in one shot, with a close-up of the dense accuracy."""
    rows = rows[rows["retrain_epochs"] == 0]
    figure = new_figure(rows, MAIN_INCHES)
    close, whole = figure.subplots(2, height_ratios=(2, 5))
    dense = rows.loc[rows["sparsity"] == 0, "test_accuracy"].mean()
    chance = 1 / int(rows["layer_sizes"].iloc[0].rpartition("-")[2])
    shown = [method for method in STYLES if method != "matched_weight"]
    for ax in (close, whole):
        draw(ax, rows, "sparsity", "test_accuracy", shown)
        ax.axhline(dense, color="black", lw=0.8, label=f"dense network: {dense:.3f}")
        ax.axhline(chance, color="black", lw=0.8, ls=(0, (1, 3)), label=f"chance: {chance:.3g}")
    set_sparsity_axis(close, rows, lambda sparsity, position: percent(1 - sparsity, position))
    close.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False)
    close.xaxis.set_label_position("top")
    close.set(xlabel="kept in each hidden layer, %", ylabel="close-up")
    close.set_ylim(dense - CLOSE_UP[0], dense + CLOSE_UP[1])
    set_sparsity_axis(whole, rows)
    whole.set(ylim=(0, 1.02), yticks=np.linspace(0, 1, 11), ylabel="test accuracy")
    whole.set_xlabel("sparsity (logarithmic in the share kept)")
    add_legend(figure, [whole], f"{title}: accuracy of pruned networks", columns=2)
    return figure


def draw_analysis(title, rows):
    """Draw what explains the reproduction, a question a panel: layers, bias, speed, retraining."""
    one_shot, retrained = (rows[(rows["retrain_epochs"] > 0) == more] for more in (False, True))
    lines, columns = (1, 3) if retrained.empty else (2, 2)
    inches = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines + 1)
    figure = new_figure(rows, inches)
    live, unbiased, speed, *again = axes = list(figure.subplots(lines, columns).flat)
    draw(live, one_shot, "live_fraction", "test_accuracy", ("weight", "neuron", "matched_weight"))
    live.set_xscale("log", nonpositive="mask")
    set_ticks(live.xaxis, SHARE_TICKS, one_shot["live_fraction"], percent)
    live.set_xlim(1.2, max(one_shot["live_fraction"].min(), SHARE_TICKS[-1]) / 1.2)
    live.set(title="At equal numbers of live weights?", xlabel="hidden weights that can act, %")
    draw(unbiased, one_shot, "sparsity", "test_accuracy", faint=True)
    draw(unbiased, one_shot, "sparsity", "unbiased_accuracy")
    unbiased.set_title("Without output bias (thin: with it)?")
    draw(speed, one_shot, "sparsity", "speedup", ("weight", "neuron"))
    speed.set(yscale="log", title="Are the networks faster?", ylabel="speed-up over dense")
    set_ticks(speed.yaxis, SPEEDUP_TICKS, one_shot["speedup"], "{x:.3g}x")
    for ax in again:
        draw(ax, retrained, "sparsity", "test_accuracy")
        ax.set_title(f"After retraining? (epochs: {rows['retrain_epochs'].max()})")
    for ax in (live, unbiased, *again):
        ax.set(ylim=(0, 1.02), ylabel="test accuracy")
    for ax in (unbiased, speed, *again):
        set_sparsity_axis(ax, rows)
        ax.set_xlabel("sparsity")
    add_legend(figure, axes, f"{title}: what pruning breaks", columns=3)
    return figure


def draw_figures(path):
    """Draw both figures of a CSV file beside it, as PNGs; return their paths."""
    import pandas

    rows = pandas.read_csv(path)
    title = TITLES.get(rows["dataset"].iloc[0], path.stem)
    figures = {
        path.with_suffix(".png"): draw_reproduction(title, rows),
        path.with_name(f"{path.stem}-analysis.png"): draw_analysis(title, rows),
    }
    for picture, figure in figures.items():
        with replacing(picture) as temporary:
            figure.savefig(temporary, format="png")
    return list(figures)


# --------------------------------------------------------------------------------------- data


class Dataset(NamedTuple):
    """Images [n, height, width] of unsigned bytes up to `max_pixel`, and their labels [n]."""

    name: str
    source: str
    max_pixel: int
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def title(self):
        """Name for people."""
        return TITLES.get(self.name, self.name)

    def layer_sizes(self, hidden_units):
        """Sizes of the layers of a classifier, the input's first."""
        classes = int(self.train_labels.max()) + 1
        return [math.prod(self.train_images.shape[1:]), *hidden_units, classes]


def load_datasets(names, data_dir):
    """Load the named data sets; where none is named, MNIST and Fashion-MNIST.

    If these two are to be downloaded and cannot be, the bundled digits are used instead. Raises
    UserError for a data set that is unavailable.
    """
    try:
        return [load_dataset(name, data_dir) for name in dict.fromkeys(names or DOWNLOADED)]
    except UserError as error:
        if names or data_dir:
            raise
        print(f"{error}\nUsing scikit-learn's {BUNDLED} instead.", file=sys.stderr)
        return [load_dataset(BUNDLED, data_dir)]


def load_dataset(name, data_dir):
    """Load one data set, from the IDX files below `data_dir` if given, and check it."""
    if name == BUNDLED:
        dataset = load_digits()
    elif data_dir:
        arrays = [read_idx(data_dir / name / file, IDX_FILES[file]) for file in IDX_FILES]
        dataset = Dataset(name, str(data_dir / name), 255, *arrays)
    else:
        dataset = download(name)
    check_dataset(dataset)
    return dataset


def read_idx(path, dimensions):
    """Read an IDX file of unsigned bytes, `path` or gzip-compressed `path`.gz.

    Returns a uint8 array of that many dimensions. Raises UserError, naming the file, if it is
    missing or damaged or holds something else.
    """
    packed = path.with_name(f"{path.name}.gz")
    path, open_file = (packed, gzip.open) if os.path.exists(packed) else (path, open)
    try:
        with open_file(path, "rb") as file:
            content = file.read(IDX_LIMIT)
        if content[:4] != bytes((0, 0, IDX_UNSIGNED_BYTE, dimensions)):
            raise ValueError(f"its header is not that of bytes in {dimensions} dimension(s)")
        shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except FileNotFoundError as error:
        advice = f"--data-dir is the folder that contains {path.parent.name}/"
        raise UserError(f"there is no {path}.gz, nor one without .gz; {advice}") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path} is not a whole IDX file: {error}") from error


def download(name):
    """Load a data set by keras.datasets, which downloads it once and caches it."""
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train_set, test_set = getattr(tf.keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception for a failed download
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} is unavailable: its download failed ({reason}); pass --data-dir DIR with "
            f"DIR/{name}/{next(iter(IDX_FILES))}.gz and so on, or if an earlier download was cut "
            "short, delete what it left in ~/.keras/datasets"
        ) from error
    return Dataset(name, "keras.datasets", 255, *train_set, *test_set)


def load_digits():
    """Load scikit-learn's handwritten digits, 1,797 images of 8 x 8; the last 360 are for tests."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images, labels, split = digits.images.astype(np.uint8), digits.target, len(digits.target) - 360
    parts = images[:split], labels[:split], images[split:], labels[split:]
    return Dataset(BUNDLED, "scikit-learn", 16, *parts)


def check_dataset(dataset):
    """Raise UserError, naming the files, unless images and labels fit each other."""
    _, _, _, train_images, train_labels, test_images, test_labels = dataset
    classes = int(train_labels.max(initial=0)) + 1
    parts = ("train", train_images, train_labels), ("t10k", test_images, test_labels)
    for part, images, labels in parts:
        files = f"{dataset.name} from {dataset.source}: {part}-images and {part}-labels"
        if images.size == 0 or len(images) != len(labels):
            raise UserError(f"{files} have {len(images)} images and {len(labels)} labels")
        if labels.max() >= classes or classes < 2:
            raise UserError(f"{files}: a label {labels.max()}, but {classes} classes in training")
        if images.shape[1:] != train_images.shape[1:]:
            raise UserError(f"{files}: images of another shape than in training")


def on_device(dataset, precision):
    """Copy a data set to the device: images [n, pixels] in [0, 1], scaled there, and labels [n].

    The images for training have the precision of training. The test labels stay NumPy.
    """

    def scaled(images):
        return tf.cast(images.reshape(len(images), -1), tf.float32) / dataset.max_pixel

    return dataset._replace(
        train_images=tf.cast(scaled(dataset.train_images), precision),
        train_labels=tf.constant(dataset.train_labels, tf.int64),
        test_images=scaled(dataset.test_images),
    )


# ------------------------------------------------------------------------------- command line

SETTINGS = ("epochs", "batch_size", "learning_rate", "precision")  # options that the CSV repeats


def between(kind, low, high):
    """Make the type of an option that takes a number of this kind from `low` to `high`."""

    def parse(text):
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return kind(text)

    parse.__name__ = kind.__name__  # for argparse's message on a text that is no number
    return parse


def parse_options(arguments):
    """Parse the command line; exit with a message if it is wrong."""
    share, rate = between(float, 0, 1), between(float, 1e-38, 1e38)
    natural, count = between(int, 0, 2**31 - 1), between(int, 1, 2**31 - 1)
    sparsities, units = (" ".join(map(str, values)) for values in (SPARSITIES, HIDDEN_UNITS))
    name, usage, summary = Path(__file__).name, "%(prog)s [options]", __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(name, usage, summary, allow_abbrev=False)
    add = parser.add_argument
    add("--datasets", nargs="+", help="mnist, fashion_mnist, digits, or a folder in --data-dir")
    add("--data-dir", type=Path, help="folder of folders of IDX files, instead of a download")
    add("--output-dir", type=Path, default="plots", help="folder to write to (%(default)s)")
    add("--methods", nargs="+", choices=METHODS, help="all but global_weight, unless given")
    add("--sparsities", nargs="+", type=share, default=SPARSITIES, help=f"fractions ({sparsities})")
    add("--retrain-epochs", type=natural, default=0, help="epochs after pruning (%(default)s)")
    add("--runs", type=count, default=RUNS, help="networks per data set (%(default)s)")
    add("--seed", type=natural, default=0, help="seed of all random draws (%(default)s)")
    add("--hidden-units", nargs="+", type=count, default=HIDDEN_UNITS, help=f"units ({units})")
    add("--epochs", type=count, default=EPOCHS, help="epochs of training (%(default)s)")
    add("--batch-size", type=count, default=BATCH_SIZE, help="images per step (%(default)s)")
    add("--learning-rate", type=rate, default=LEARNING_RATE, help="rate of Adam (%(default)s)")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="type of matrix products")
    add("--save-models", action="store_true", help="save the neuron-pruned networks of one run")
    add("--replot", action="store_true", help="only draw figures, from CSV files in --output-dir")
    options = parser.parse_args(arguments)
    if error := wrong_option(options):
        parser.error(error)
    options.sparsities = sorted({0.0, *map(abs, options.sparsities)})  # abs: -0.0
    default = [method for method in METHODS if method != "global_weight"]
    if not options.retrain_epochs:
        default.remove(SCRATCH)
    options.methods = list(dict.fromkeys(options.methods or default))
    return options


def wrong_option(options):
    """Say what is wrong with options that parse, or nothing; make the output folder."""
    methods = options.methods or []
    if SCRATCH in methods and not (options.retrain_epochs and "neuron" in methods):
        return f"--methods {SCRATCH} needs neuron beside it, and --retrain-epochs"
    if options.save_models and methods and "neuron" not in methods:
        return "--save-models saves what --methods neuron makes: add it"
    if options.data_dir and not os.path.isdir(options.data_dir):
        return f"--data-dir {options.data_dir} is not a folder"
    for name in options.datasets or []:
        known = options.data_dir or options.replot or name in TITLES
        if Path(name).name != name or not known:
            return f"--datasets {name}: one of {', '.join(TITLES)}, or a folder in --data-dir"
    if options.replot:
        return ""
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output_dir).close()
    except OSError as error:
        return f"--output-dir {options.output_dir} cannot be written to: {error}"
    return ""


def configure_tensorflow():
    """Import and configure TensorFlow; return the name of the first GPU, or else of the CPU.

    Whatever the device, float32 products are float32 and a seed gives the same network each time.
    """
    global tf
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal messages only
    # oneDNN's products are the faster ones, also on CPUs where TensorFlow would not choose them
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        import tensorflow as tf
    except ImportError as error:
        install = f"{sys.executable} -m pip install -r requirements.txt"
        raise UserError(f"TensorFlow cannot be imported ({error}); run {install}") from error
    tf.get_logger().setLevel("ERROR")  # every size of network is traced, which it warns of
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)  # rounds to 10 bits
    tf.config.threading.set_inter_op_parallelism_threads(1)  # the work is one chain of products
    gpus = tf.config.list_physical_devices("GPU")[:1]
    if not gpus:
        return f"CPU, {cpu_name()}"
    tf.config.set_visible_devices(gpus, "GPU")
    tf.config.experimental.set_memory_growth(gpus[0], True)
    return f"GPU, {tf.config.experimental.get_device_details(gpus[0]).get('device_name')}"


def cpu_name():
    """Return the processor's name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def say(text):
    """Print a line above the progress bar; raise UserError if standard output takes no more."""
    try:
        with tqdm.external_write_mode():
            print(text, flush=True)
    except OSError as error:
        sys.stdout = None  # or Python would fail to flush it at exit
        raise UserError(f"standard output cannot be written: {error.strerror}") from error


def run_experiment(options):
    """Load the data sets and run the experiment on each."""
    device = configure_tensorflow()
    datasets = load_datasets(options.datasets, options.data_dir)
    say(f"device: {device}")
    if "CPU" in device and shutil.which("nvidia-smi") and "CUDA_VISIBLE_DEVICES" not in os.environ:
        say('TensorFlow does not see the NVIDIA GPU. On Linux or WSL 2, pip install "tensorflow'
            '[and-cuda]"; if that is done, see https://www.tensorflow.org/install/pip')  # fmt: skip
    work = options.runs * sum(planned_work(dataset, options) for dataset in datasets)
    shape = "{desc} {percentage:3.0f} %|{bar}| {elapsed} elapsed, {remaining} left"
    no_terminal = not (sys.stderr and sys.stderr.isatty())
    with tqdm(total=work, disable=no_terminal, leave=False, smoothing=0, bar_format=shape) as bar:
        try:
            for dataset in datasets:
                run_dataset(dataset, options, device, bar)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            advice = "pass a smaller --batch-size or smaller --hidden-units"
            raise UserError(f"out of memory on the {device}; {advice}") from error


def replot(options):
    """Draw the figures of the named data sets, or of all, from their CSV files again."""
    names = options.datasets or [path.stem for path in sorted(options.output_dir.glob("*.csv"))]
    if not names:
        raise UserError(f"there is no CSV file in {options.output_dir} (--output-dir)")
    for name in names:
        path = options.output_dir / f"{name}.csv"
        try:
            pictures = draw_figures(path)
        except (OSError, LookupError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a whole CSV file of this script: {error!r}") from error
        say("\n".join(map(str, pictures)))


def main(arguments=None):
    """Run the experiment and return the exit status."""
    options = parse_options(arguments)
    with contextlib.suppress(AttributeError):  # a notebook's, or none
        sys.stdout.reconfigure(errors="replace")  # characters that it cannot encode
    try:
        if options.replot:
            replot(options)
        else:
            run_experiment(options)
    except UserError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130  # as shells have it
    return 0


if __name__ == "__main__":
    sys.exit(main())

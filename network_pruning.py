#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "tensorflow>=2.16.1,<3; python_version < '3.14'",
#     "tensorflow>=2.22.0rc0,<3; python_version >= '3.14'",
#     "numpy>=1.26,<3",
#     "matplotlib>=3.8,<4",
#     "pandas>=2.1.1,<4",
#     "tqdm>=4.66,<5",
#     "scikit-learn>=1.4,<2",
# ]
# ///
"""Accuracy against sparsity of pruned MNIST and Fashion-MNIST classifiers.

Trains dense ReLU networks, prunes them by weight magnitude and by the L2 norm of neurons, with
random pruning as the baseline, repairs what is left, and plots the test accuracy.

    python network_pruning.py             writes a CSV and three PNGs per data set to plots/
    python network_pruning.py --help      lists the options

The pruning functions are NumPy in, NumPy out:

    from network_pruning import prune_neurons, prune_weights, compact, refit

Everything else needs `configure_tensorflow()` first.
"""

import argparse
import contextlib
import functools
import gzip
import io
import math
import numbers
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).name
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSTALL = f"{sys.executable} -m pip install -r {REQUIREMENTS}"
USE_CPU = "set the environment variable CUDA_VISIBLE_DEVICES=-1 to run on the CPU"

try:
    import numpy as np
    from tqdm import tqdm
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"{SCRIPT}: error: {missing}; run {INSTALL}")

# TensorFlow takes seconds to import, pandas and Matplotlib take half a second: --help and `import
# network_pruning` do without them.
tf = keras = None  # set by `configure_tensorflow`

# ------------------------------------------------------------------------------------- recipe

HIDDEN_UNITS = (1000, 1000, 500, 200)
EPOCHS = 10
BATCH_SIZE = 128  # images
LEARNING_RATE = 1e-3  # of Adam, whose other settings are TensorFlow 1's defaults
SEEDS = (0, 1, 2)  # one network per data set and seed
SPARSITIES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
REFIT_IMAGES = 1000

# chosen on 10,000 held-out training images: 40 steps gain at most 1.1 points of accuracy
REFIT_STEPS = 10
REFIT_RIDGE = 0.01  # relative to the mean square of the inputs
FAILED_LOSS = 100  # times the loss of chance, ln(classes); beyond it training did not recover
TIMING_ROUNDS = 3
DECIMALS = 6  # of what was measured, in the CSV

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}  # downloaded by keras.datasets
PAGES = {  # where their files can be downloaded by hand
    "mnist": "https://github.com/cvdfoundation/mnist",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist",
}
BUNDLED = "digits"  # comes with scikit-learn
DOWNLOAD_TIMEOUT = 10  # seconds without data

# a progress bar where standard error is a terminal
progress = functools.partial(tqdm, leave=False, disable=None if sys.stderr else True)


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong and how to fix it."""


# ------------------------------------------------------------------------------------ pruning
# NumPy in, NumPy out. The weights or units of a kernel are ranked, the least important first;
# each sparsity removes the lowest-ranked ones.


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
    return zero_lowest(kernel, rank(magnitudes(kernel)), count_removed(sparsity, kernel.size))


def prune_neurons(kernel, sparsity):
    """Return a copy of a kernel with its units of smallest L2 norm set to 0.

    A unit's norm is that of its incoming weights, which are all removed with it (Li et al. 2017,
    "Pruning Filters for Efficient ConvNets", there with the L1 norm). Exactly
    `round(sparsity * units)` units are removed; of equal ones the first go first. A higher sparsity
    removes a superset of what a lower one removes. A removed unit that has a bias still outputs a
    constant: set its bias to 0 as well.

    Arguments: as for `prune_weights`.
    """
    kernel = check_prunable(kernel, sparsity)
    return zero_lowest(kernel, rank(unit_norms(kernel)), count_removed(sparsity, kernel.shape[-1]))


def check_prunable(kernel, sparsity):
    """Return `kernel` as an array; raise ValueError if it or `sparsity` is unfit for pruning."""
    kernel = np.asarray(kernel)
    if kernel.ndim < 2:
        raise ValueError(f"a kernel has shape [fan_in, units], not {list(kernel.shape)}")
    if kernel.dtype.kind not in "fiu":
        raise ValueError(f"a kernel has real weights, not {kernel.dtype}; convert it to float32")
    if not np.isfinite(kernel).all():
        raise ValueError("a kernel has finite weights; this one has some that are not")
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is a fraction in [0, 1], not {sparsity!r}")
    return kernel


def magnitudes(kernel):
    """Magnitude of each weight, in the shape of the kernel."""
    return np.abs(kernel, dtype=np.float64)  # in which no integer's magnitude overflows


def unit_norms(kernel):
    """L2 norm of each unit's incoming weights, [units]."""
    # float64, in which the squares of float32 weights neither overflow nor vanish
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), axis=0)


def rank(scores):
    """Place of each score in ascending order, from 0; of equal scores the first comes first."""
    order = np.argsort(scores, axis=None, kind="stable")
    return np.argsort(order).reshape(scores.shape)


def count_removed(sparsity, size):
    """Return how many of `size` weights or units are removed at this sparsity."""
    return round(float(sparsity) * size)  # a NumPy float16 cannot count that far


def zero_lowest(kernel, ranks, cutoff):
    """Return a copy of a kernel with the weights or units of ranks below `cutoff` set to 0.

    ranks: of the weights, in the shape of the kernel, or of the units, [units].
    """
    return np.where(ranks >= cutoff, kernel, kernel.dtype.type(0))


def live_units(kernels):
    """Return the indices of all inputs, of the live units of each hidden layer, and of all outputs.

    A hidden unit is live if a path of nonzero weights leads through it from an input to an output.
    If no path is left at all, unit 0 of each hidden layer is returned, so that no layer is
    empty. kernels: as for `compact`.
    """
    reached = [np.full(kernels[0].shape[0], True)]
    for kernel in kernels:
        reached.append(kernel[reached[-1]].any(axis=0))
    reaching = [np.full(kernels[-1].shape[1], True)]
    for kernel in reversed(kernels):
        reaching.insert(0, kernel[:, reaching[0]].any(axis=1))
    units = [np.flatnonzero(both) for both in map(np.logical_and, reached, reaching)]
    hidden = [indices if indices.size else np.array([0]) for indices in units[1:-1]]
    return [np.arange(kernels[0].shape[0]), *hidden, np.arange(kernels[-1].shape[1])]


def compact(kernels):
    """Return the kernels of a smaller dense network that computes the same.

    A unit that no input reaches through nonzero weights, or that reaches no output, is deleted with
    its column and its row; inputs and outputs stay. That is exact for ReLU layers without bias,
    where a unit without incoming weights outputs relu(0) = 0, and in training too, as long as zero
    weights stay zero: the deleted ones would get no gradient.

    kernels: [fan_in, units] each, first to output; they are not modified. If no path is left at
    all, every hidden layer keeps one unit, and all weights are 0, since frameworks have no layers
    without units. Raises ValueError unless the kernels have two dimensions and fit each other.
    """
    kernels = [np.asarray(kernel) for kernel in kernels]
    shapes = [kernel.shape for kernel in kernels]
    chained = all(before[-1:] == after[:1] for before, after in zip(shapes, shapes[1:]))
    if {len(shape) for shape in shapes} != {2} or not chained:
        advice = "leave out the output bias; hidden layers with biases cannot be compacted"
        raise ValueError(f"not kernels [fan_in, units] of consecutive layers: {shapes}; {advice}")
    units = live_units(kernels)
    ends = zip(kernels, units, units[1:])
    small = [kernel[np.ix_(rows, columns)] for kernel, rows, columns in ends]
    connected = all(kernel.any() for kernel in small)
    return small if connected else [np.zeros_like(kernel) for kernel in small]


def refit(kernel, inputs, targets, steps=REFIT_STEPS, ridge=REFIT_RIDGE):
    """Return a copy of a pruned kernel, its nonzero weights refit to come close to the targets.

    Least squares for each unit, on its nonzero weights: minimizes the sum of
    (inputs @ kernel - targets)^2 and a ridge on the change of the weights, by conjugate gradients
    on the normal equations, scaled by their diagonal, for all units at once (Castellano, Fanelli
    and Pelillo 1997, "An Iterative Pruning Algorithm for Feedforward Neural Networks"; Meng et al.
    2024, "ALPS"). Zero weights stay zero. Weights on inputs that are always 0 stay as they are, and
    so does a kernel that already computes its targets.

    kernel: [fan_in, units]. inputs: [n, fan_in], what the layer receives in the pruned network.
    targets: [n, units], what it should compute before bias and activation, such as what it
    computes in the dense network. steps: the more, the closer to the minimum. ridge: relative to
    the mean square of the inputs that are not always 0. Raises ValueError for shapes that do not
    fit each other, no samples, and values that are not finite.
    """
    kernel, inputs, targets = check_refittable(kernel, inputs, targets)
    kept = kernel != 0
    gram = inputs.T @ inputs
    squares = gram.diagonal()
    penalty = ridge * squares.sum() / max(np.count_nonzero(squares), 1)
    gram += penalty * np.eye(len(gram), dtype=gram.dtype)
    tiny = np.finfo(gram.dtype).tiny  # divides instead of 0 where nothing is left to improve
    scale = 1 / np.maximum(gram.diagonal()[:, np.newaxis], tiny)
    change = np.zeros_like(kernel)
    residual = kept * (inputs.T @ (targets - inputs @ kernel))
    direction = scale * residual
    length = np.sum(residual * direction, axis=0)
    for _ in range(steps):
        curved = kept * (gram @ direction)
        step = length / np.maximum(np.sum(direction * curved, axis=0), tiny)
        change += step * direction
        residual = residual - step * curved
        previous = length
        length = np.sum(residual * scale * residual, axis=0)
        direction = scale * residual + length / np.maximum(previous, tiny) * direction
    return kernel + change


def check_refittable(kernel, inputs, targets):
    """Return the arguments of `refit` as arrays of one float type; raise ValueError if unfit."""
    kernel, inputs, targets = np.asarray(kernel), np.asarray(inputs), np.asarray(targets)
    fitting = kernel.ndim == inputs.ndim == 2 and inputs.shape[1] == kernel.shape[0]
    if not fitting or len(inputs) == 0 or targets.shape != (len(inputs), kernel.shape[1]):
        raise ValueError(
            "not a kernel [fan_in, units], inputs [n, fan_in] and targets [n, units], n > 0: "
            f"{kernel.shape}, {inputs.shape}, {targets.shape}"
        )
    dtype = np.result_type(kernel, inputs, targets, np.float32)
    arrays = [array.astype(dtype) for array in (kernel, inputs, targets)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("kernel, inputs and targets must be finite")
    return arrays


# ----------------------------------------------------------------------- network and training


class Network(NamedTuple):
    """A dense network: ReLU in the hidden layers, logits from the output layer.

    Hidden layers have no bias, so a unit without incoming weights outputs 0 and really is gone.
    """

    kernels: list  # of arrays [fan_in, units], from the first layer to the output layer
    bias: np.ndarray  # of the output layer, [classes]

    @property
    def hidden(self):
        """Kernels of the hidden layers."""
        return self.kernels[:-1]

    @property
    def sizes(self):
        """Sizes of the layers, the input's first."""
        return (self.kernels[0].shape[0], *(kernel.shape[1] for kernel in self.kernels))


def new_network(sizes, rng):
    """Make a network with Glorot-uniform kernels and a bias of 0; sizes: see `Network.sizes`.

    Glorot and Bengio 2010, "Understanding the Difficulty of Training Deep Feedforward Neural
    Networks".
    """
    kernels = []
    for fan_in, units in zip(sizes, sizes[1:]):
        limit = math.sqrt(6 / (fan_in + units))
        kernels.append(rng.uniform(-limit, limit, (fan_in, units)).astype(np.float32))
    return Network(kernels, np.zeros(sizes[-1], np.float32))


def layer_inputs(network, images):
    """What each layer receives: the images [n, pixels], then the output of each hidden layer."""
    inputs = [images]
    for kernel in network.hidden:
        inputs.append(tf.nn.relu(tf.matmul(inputs[-1], kernel)))
    return inputs


def layer_outputs(network, images):
    """What each layer computes before bias and activation: arrays [n, units]."""
    inputs = layer_inputs(network, images)
    return [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, network.kernels)]


def live_outputs(outputs, kernels):
    """What the live units of pruned kernels computed before; outputs: as from `layer_outputs`."""
    return [layer[:, units] for layer, units in zip(outputs, live_units(kernels)[1:])]


def logits(network, images):
    """Logits [n, classes] of images [n, pixels]."""
    return tf.matmul(layer_inputs(network, images)[-1], network.kernels[-1]) + network.bias


def train(network, images, targets, epochs, batch_size, learning_rate, rng):
    """Return a network trained further by Adam on softmax cross-entropy; zero weights stay zero.

    Each training starts with new moments of Adam (Kingma and Ba 2015). An epoch is a permutation of
    the images, drawn from rng. images: tensor [n, pixels] of float32. targets: tensor [n, classes]
    of float32, class probabilities, such as one-hot labels. Raises UserError if an epoch ends with
    a loss that is not finite or far above that of chance.
    """
    trained = Network(list(map(tf.Variable, network.kernels)), tf.Variable(network.bias))
    variables = [*trained.kernels, trained.bias]
    pruned = [i for i, kernel in enumerate(network.kernels) if not kernel.all()]
    masks = {i: tf.constant(network.kernels[i] != 0, tf.float32) for i in pruned}
    # TensorFlow 1's Adam is faster: one fused operation per variable; Keras 3's is a chain of them
    adam = tf.compat.v1.train.AdamOptimizer(learning_rate)

    @tf.function
    def train_epoch(order):
        total = 0.0
        for first in tf.range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            with tf.GradientTape() as tape:
                outputs = logits(trained, tf.gather(images, batch))
                wanted = tf.gather(targets, batch)
                losses = tf.nn.softmax_cross_entropy_with_logits(wanted, outputs)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, variables)
            for i, mask in masks.items():
                gradients[i] *= mask
            adam.apply_gradients(zip(gradients, variables))
            total += tf.reduce_sum(losses)
        return total / len(order)

    for epoch in progress(range(1, epochs + 1), unit="epoch"):
        loss = train_epoch(tf.constant(rng.permutation(len(images))))
        if not loss < FAILED_LOSS * math.log(network.bias.size):  # true of NaN, too
            advice = f"pass a --learning-rate below {learning_rate:g}"
            raise UserError(f"training failed in epoch {epoch}: the loss is {loss:g}; {advice}")
    return Network([kernel.numpy() for kernel in trained.kernels], trained.bias.numpy())


def refit_output(network, images, targets):
    """Return a network whose output layer alone is refit; arguments: as for `refit_layers`."""
    inputs = layer_inputs(network, images)[-1].numpy()
    output = refit(network.kernels[-1], inputs, targets[-1])
    return network._replace(kernels=[*network.hidden, output])


def refit_layers(network, images, targets):
    """Return a network refit layer by layer, each on the outputs of the layers refit before it.

    images: array [n, pixels]. targets: what each layer should compute before bias and activation,
    arrays [n, units].
    """
    inputs = images
    kernels = []
    for kernel, layer_targets in zip(network.kernels, targets):
        kernels.append(refit(kernel, inputs, layer_targets))
        inputs = np.maximum(inputs @ kernels[-1], 0)
    return network._replace(kernels=kernels)


# --------------------------------------------------------------------------------- experiment
# To add a method, add an entry to METHODS and one to STYLES. To add a repair, which is what is done
# to a pruned network, add an entry to REPAIRS, one to STYLES and its lines to `run_seed`.


class Method(NamedTuple):
    """How a method prunes the kernels of the hidden layers."""

    rank: Callable  # (kernels, rng) -> for each layer, the ranks of its weights or units
    cutoffs: Callable  # (kernels, ranks, sparsity) -> for each layer, the lowest rank that stays

    def prune(self, kernels, ranks, sparsity):
        """Return copies of the kernels of the hidden layers, pruned; ranks: from `rank`."""
        return list(map(zero_lowest, kernels, ranks, self.cutoffs(kernels, ranks, sparsity)))


def rank_weights(kernels, rng):
    """Rank the weights of each layer by magnitude."""
    return [rank(magnitudes(kernel)) for kernel in kernels]


def rank_neurons(kernels, rng):
    """Rank the neurons of each layer by the L2 norm of their incoming weights."""
    return [rank(unit_norms(kernel)) for kernel in kernels]


def rank_all_weights(kernels, rng):
    """Rank the weights of all layers together by magnitude."""
    ranks = rank(np.concatenate([magnitudes(kernel).ravel() for kernel in kernels]))
    ends = np.cumsum([kernel.size for kernel in kernels])
    layers = np.split(ranks, ends[:-1])
    return [layer.reshape(kernel.shape) for layer, kernel in zip(layers, kernels)]


def shuffle_weights(kernels, rng):
    """Rank the weights of each layer at random."""
    return [rng.permutation(kernel.size).reshape(kernel.shape) for kernel in kernels]


def shuffle_neurons(kernels, rng):
    """Rank the neurons of each layer at random."""
    return [rng.permutation(kernel.shape[1]) for kernel in kernels]


def same_share(kernels, ranks, sparsity):
    """Remove the same share of what is ranked in each layer."""
    return [count_removed(sparsity, layer.size) for layer in ranks]


def share_of_all(kernels, ranks, sparsity):
    """Remove a share of all layers together: the ranks are common to them."""
    return [count_removed(sparsity, sum(layer.size for layer in ranks))] * len(ranks)


def as_neurons(kernels, ranks, sparsity):
    """Keep as many weights in each layer as neuron pruning leaves live.

    Some of those kept may lead to units that reach nothing, or come from units that nothing
    reaches, and so have no effect.
    """
    output = np.ones((kernels[-1].shape[1], 1))  # an output layer that every unit reaches
    *left, _ = compact([*(prune_neurons(kernel, sparsity) for kernel in kernels), output])
    return [kernel.size - np.count_nonzero(live) for kernel, live in zip(kernels, left)]


METHODS = {
    "weight": Method(rank_weights, same_share),
    "neuron": Method(rank_neurons, same_share),
    "matched_weight": Method(rank_weights, as_neurons),
    "random_weight": Method(shuffle_weights, same_share),
    "random_neuron": Method(shuffle_neurons, same_share),
    # the rule of torch's `global_unstructured`
    "global_weight": Method(rank_all_weights, share_of_all),
}
DEFAULT_METHODS = ("weight", "neuron", "matched_weight", "random_weight", "random_neuron")

REPAIRS = {  # name: title in figures and tables
    "none": "as pruned",
    "no_bias": "without the output bias",
    "refit_output": "output layer refit",
    "refit": "refit",
    "retrain": "retrained",
}

MEASURED = ["test_accuracy", "test_loss", "live_fraction", "stored_fraction"]


def evaluate(outputs, labels):
    """Accuracy in [0, 1] and mean cross-entropy in nats of logits [n, classes]."""
    outputs = outputs.astype(np.float64)
    losses = np.logaddexp.reduce(outputs, axis=1) - outputs[np.arange(len(labels)), labels]
    return np.mean(outputs.argmax(axis=1) == labels), losses.mean()


def time_sizes(layer_sizes, images):
    """Time a pass over images for networks of these sizes; return {sizes: best seconds}.

    Only the sizes decide how fast a network is, so the weights are random ones. Every round visits
    every network once, so that changes in the machine's speed affect all alike.
    """
    seconds = dict.fromkeys(layer_sizes, math.inf)
    networks = {}
    for sizes in seconds:
        network = new_network(sizes, np.random.default_rng(0))
        networks[sizes] = network._replace(kernels=list(map(tf.constant, network.kernels)))
    for _ in range(TIMING_ROUNDS):
        for sizes, network in networks.items():
            began = time.perf_counter()
            logits(network, images).numpy()  # waits for a GPU
            seconds[sizes] = min(seconds[sizes], time.perf_counter() - began)
    return seconds


def measure(network, features, labels):
    """Measure a network on the test set; features [n, units] is what its output layer receives."""
    outputs = tf.matmul(features, network.kernels[-1]).numpy() + network.bias
    accuracy, loss = evaluate(outputs, labels)
    return {
        "test_accuracy": accuracy,
        "test_loss": loss,
        "live_weights": sum(np.count_nonzero(kernel) for kernel in network.hidden),
        "stored_weights": sum(kernel.size for kernel in network.hidden),
        "layer_sizes": network.sizes,
    }


def rng_for(seed, purpose):
    """Make the generator of one purpose, so that no option changes what another one draws."""
    return np.random.default_rng([seed, *purpose.encode()])


def choose_images(images, count, seed):
    """Choose training images to refit on: an array [count, pixels]."""
    chosen = rng_for(seed, "refit images").choice(len(images), count, replace=False)
    return tf.gather(images, chosen).numpy()


def run_seed(dataset, seed, options):
    """Run the experiment with one seed on a data set: train, prune, repair, measure.

    Returns a data frame with a row for each network and repair, and the dense and the neuron-pruned
    networks by name, each after its last repair.
    """
    rows = []

    def learn(network, epochs, name):
        return train(
            network,
            dataset.train_images,
            dataset.train_targets,
            epochs,
            options.batch_size,
            options.learning_rate,
            rng_for(seed, f"train {name}"),
        )

    def record(method, sparsity, repair, network, features=None, refit_images=0, retrain_epochs=0):
        if features is None:  # what the output layer receives for the test images
            features = layer_inputs(network, dataset.test_images)[-1]
        row = {
            "method": method,
            "sparsity": sparsity,
            "repair": repair,
            "refit_images": refit_images,
            "retrain_epochs": retrain_epochs,
        }
        rows.append(row | measure(network, features, dataset.test_labels))

    pixels = dataset.train_images.shape[1]
    classes = dataset.train_targets.shape[1]
    retrain_epochs = options.retrain_epochs
    new = new_network((pixels, *options.hidden_units, classes), rng_for(seed, "new dense"))
    dense = learn(new, options.epochs, "dense")
    record("dense", 0.0, "none", dense)
    record("dense", 0.0, "no_bias", Network(dense.kernels, 0 * dense.bias))
    models = {"dense": dense}
    if retrain_epochs > 0:
        models["dense"] = learn(dense, retrain_epochs, "dense again")
        record("dense", 0.0, "retrain", models["dense"], retrain_epochs=retrain_epochs)

    refit_images = min(options.refit_images, len(dataset.train_images))
    images = choose_images(dataset.train_images, refit_images, seed)
    dense_outputs = layer_outputs(dense, images)

    neuron_sizes = {}  # by sparsity
    for method in progress(options.methods, unit="method"):
        ranks = METHODS[method].rank(dense.hidden, rng_for(seed, f"prune {method}"))
        for sparsity in options.sparsities:
            hidden = METHODS[method].prune(dense.hidden, ranks, sparsity)
            kernels = [*hidden, dense.kernels[-1]]
            pruned = Network(compact(kernels), dense.bias)
            features = layer_inputs(pruned, dataset.test_images)[-1]
            record(method, sparsity, "none", pruned, features)
            record(method, sparsity, "no_bias", Network(pruned.kernels, 0 * dense.bias), features)
            last = pruned
            if refit_images > 0:
                wanted = live_outputs(dense_outputs, kernels)
                last = refit_output(pruned, images, wanted)
                record(method, sparsity, "refit_output", last, features, refit_images)
                last = refit_layers(pruned, images, wanted)
                record(method, sparsity, "refit", last, refit_images=refit_images)
            if retrain_epochs > 0:
                last = learn(pruned, retrain_epochs, f"{method} {sparsity}")
                record(method, sparsity, "retrain", last, retrain_epochs=retrain_epochs)
            if method == "neuron":
                neuron_sizes[sparsity] = pruned.sizes
                models[f"neuron-{sparsity}"] = last

    # A control: new networks of the sizes of neuron-pruned ones, trained for as many epochs in all.
    # They count as retrained, to be drawn beside those.
    if retrain_epochs > 0:
        for sparsity, sizes in progress(neuron_sizes.items(), unit="network"):
            new = new_network(sizes, rng_for(seed, f"new scratch {sparsity}"))
            scratch = learn(new, options.epochs + retrain_epochs, f"scratch {sparsity}")
            record("scratch", sparsity, "retrain", scratch, retrain_epochs=retrain_epochs)

    return tabulate(rows, dataset, seed, options), models


def tabulate(rows, dataset, seed, options):
    """Complete the rows of a seed, the dense network's first; return them as a data frame."""
    import pandas

    table = pandas.DataFrame(rows)
    dense = rows[0]
    seconds = time_sizes(table["layer_sizes"], dataset.test_images)
    table["speedup"] = seconds[dense["layer_sizes"]] / table["layer_sizes"].map(seconds)
    table["live_fraction"] = table["live_weights"] / dense["stored_weights"]
    table["stored_fraction"] = table["stored_weights"] / dense["stored_weights"]
    table = table.round(dict.fromkeys([*MEASURED, "speedup"], DECIMALS))
    table["layer_sizes"] = ["-".join(map(str, sizes)) for sizes in table["layer_sizes"]]
    return table.assign(
        dataset=dataset.name,
        seed=seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
    )


# ------------------------------------------------------------------------------------ results


COLUMNS = {  # of the CSV, with their types; the README says what they mean
    "dataset": str,
    "seed": int,
    "method": str,
    "sparsity": float,
    "repair": str,
    "test_accuracy": float,
    "test_loss": float,
    "live_fraction": float,
    "stored_fraction": float,
    "layer_sizes": str,
    "speedup": float,
    "refit_images": int,
    "retrain_epochs": int,
    "epochs": int,
    "batch_size": int,
    "learning_rate": float,
    "device": str,
    "versions": str,
}
KEY = ["dataset", "seed", "method", "sparsity", "repair"]  # which network a row is about
DATASET_NAME = r"\w[\w. -]*"  # also a file name, so without path separators


@contextlib.contextmanager
def replacing(path):
    """Yield a path to write to, whose file then atomically replaces `path`.

    Raises UserError if it cannot be written; an earlier file is then left as it was.
    """
    try:
        # a folder of its own: another process may be writing the same file
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            yield Path(folder, path.name)
            os.replace(Path(folder, path.name), path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_results(path, rows):
    """Write rows to a CSV file."""
    text = rows[list(COLUMNS)].to_csv(index=False, lineterminator="\n")
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def read_results(path):
    """Read the rows of a CSV file as text, so that writing them again gives the same bytes.

    Raises UserError if it is not a file of this script.
    """
    import pandas

    try:
        with open(path, encoding="utf-8") as file:
            rows = pandas.read_csv(file, dtype=str, keep_default_na=False)
        if not set(COLUMNS) <= set(rows.columns):
            raise ValueError("columns are missing")
        rows.astype(COLUMNS)
        named = rows["dataset"].str.fullmatch(DATASET_NAME).all()
        if not named or "dense" not in set(rows["method"]):
            raise ValueError("it lacks a dense network or the name of the data set")
    except (LookupError, ValueError) as error:
        raise UserError(f"{path} is not a CSV file of this script: {error}") from error
    return rows


def check_seeds(path, seeds):
    """Raise UserError if writing results of these seeds to a CSV file would lose those of others.

    The file is replaced after the first seed: an interrupted job loses what it had of later ones.
    """
    try:
        lost = set(read_results(path)["seed"].astype(int)) - set(seeds)
    except FileNotFoundError:
        return
    if lost:
        named = " ".join(map(str, sorted(lost)))
        advice = "add them to --seeds, or pass another --output-dir and --merge the files later"
        raise UserError(f"{path} has results of seeds that would be lost, {named}; {advice}")


def merge_results(paths):
    """Read CSV files and return their rows as text, sorted by seed.

    Rows about the same network and repair are kept once. Raises UserError if files disagree on what
    was measured, other than times, or if their networks were not made by the same recipe.
    """
    import pandas

    rows = pandas.concat([read_results(path).assign(file=str(path)) for path in paths])
    dense = rows[rows["method"] == "dense"]
    check_agreement(dense, ["dataset"], ["layer_sizes"])
    check_agreement(rows, ["dataset"], ["epochs", "batch_size", "learning_rate"])
    check_agreement(rows, ["dataset", "repair"], ["refit_images", "retrain_epochs"])
    check_agreement(rows, KEY, [*MEASURED, "layer_sizes"])
    rows = rows.drop_duplicates(KEY)
    return rows.sort_values("seed", key=lambda seeds: seeds.astype(int), kind="stable")


def check_agreement(rows, same, agree):
    """Raise UserError, naming the files, if rows with the `same` values differ in `agree`."""
    distinct = rows.drop_duplicates([*same, *agree])
    differing = distinct[distinct.duplicated(same, keep=False)].sort_values(same, kind="stable")
    if not differing.empty:
        first, second = differing.iloc[0], differing.iloc[1]
        what = next(name for name in agree if first[name] != second[name])
        where = ", ".join(f"{name} {first[name]}" for name in same)
        raise UserError(
            f"{first['file']} and {second['file']} cannot be merged: for {where}, {what} is "
            f"{first[what]} in one and {second[what]} in the other"
        )


def curves(rows, repair):
    """Return the rows of each method after a repair, by method.

    Each curve begins with the dense network: after the same repair, or else as trained.
    """
    import pandas

    dense = rows[rows["method"] == "dense"]
    repaired = dense[dense["repair"] == repair]
    start = dense[dense["repair"] == "none"] if repaired.empty else repaired
    pruned = rows[(rows["repair"] == repair) & (rows["method"] != "dense")]
    return {
        method: pandas.concat([start, curve])
        for method, curve in pruned.groupby("method", sort=False)
    }


def accuracy_table(rows, repair):
    """Lay out mean and standard deviation over seeds of the test accuracy, a line per sparsity."""
    import pandas

    methods = curves(rows, repair)
    curve = pandas.concat(methods, names=["curve"])
    accuracy = curve.groupby(["sparsity", "curve"])["test_accuracy"]
    spread = accuracy.std().map(" \u00b1 {:.4f}".format).replace(" \u00b1 nan", "")
    cells = (accuracy.mean().map("{:.4f}".format) + spread).unstack(fill_value="")
    return cells[list(methods)].rename_axis(columns=None).to_string()


def keras_model(network):
    """Build a compiled keras.Sequential of a network: images [n, pixels] in [0, 1] to logits."""
    pixels, *hidden, classes = network.sizes
    # float32 whatever the user's keras.json says
    layers = [keras.Input([pixels], dtype="float32")]
    for units in hidden:
        layers.append(keras.layers.Dense(units, "relu", use_bias=False, dtype="float32"))
    layers.append(keras.layers.Dense(classes, dtype="float32"))
    model = keras.Sequential(layers)
    model.set_weights([*network.kernels, network.bias])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])  # SGD keeps no state to save
    return model


def save_models(path, networks):
    """Save networks by name as Keras models beside a CSV file."""
    for name, network in networks.items():
        with replacing(path.with_name(f"{path.stem}-{name}.keras")) as temporary:
            keras_model(network).save(temporary)


# ------------------------------------------------------------------------------------ figures
# Drawn from the CSV alone. Blue and orange differ for most kinds of colour vision, and in lightness
# when printed in grey; the random baselines are thin and lie behind.


BASELINE = dict(ls=":", lw=1, zorder=1.5)
STYLES = {  # of methods and repairs, as for Axes.plot
    "weight": dict(label="weights, by magnitude", color="#00508f", marker="o"),
    "neuron": dict(label="neurons, by L2 norm", color="#e07b00", marker="s", ls="--"),
    "matched_weight": dict(label="weights, matched to neurons", color="#45a5e0", marker="^"),
    "global_weight": dict(label="weights, ranked globally", color="#9040b0", marker="D"),
    "random_weight": dict(BASELINE, label="random weights", color="#707070", marker="o"),
    "random_neuron": dict(BASELINE, label="random neurons", color="#a0a0a0", marker="s"),
    "scratch": dict(label="small networks from scratch", color="#2a8000", marker="v", ls="-."),
    # repairs, the stronger the darker
    "none": dict(label=REPAIRS["none"], color="#f0a030", marker="o"),
    "no_bias": dict(label=REPAIRS["no_bias"], color="#e06040", marker="^", ls=":"),
    "refit_output": dict(label=REPAIRS["refit_output"], color="#b04080", marker="D", ls="-."),
    "refit": dict(label=REPAIRS["refit"], color="#5050b0", marker="s", ls="--"),
    "retrain": dict(label=REPAIRS["retrain"], color="#101040", marker="v"),
}


def draw_panel(ax, curves_by_name, x, y):
    """Draw column y against column x, a share: mean, spread and single seeds of each curve.

    curves_by_name: the rows of each method or repair in STYLES.
    """
    for name, style in STYLES.items():
        if name not in curves_by_name:
            continue
        curve = curves_by_name[name]
        alive = curve.groupby("sparsity")["live_fraction"].transform("max") > 0
        curve = curve[alive]  # not where nothing is left in any network
        at = curve.pivot(index="sparsity", columns="seed", values=x)
        values = curve.pivot(index="sparsity", columns="seed", values=y)
        mean_at = at.mean(axis=1)
        mean = values.mean(axis=1)
        deviation = values.std(axis=1)  # NaN for a single seed: no band
        color = style["color"]
        ax.fill_between(mean_at, mean - deviation, mean + deviation, color=color, alpha=0.2, lw=0)
        ax.plot(at, values, lw=0.5, color=color, alpha=0.2)
        ax.plot(mean_at, mean, ms=4, **style)
    ax.grid(color="#dddddd", lw=0.6)
    ax.set_xscale("log")
    least = min(curve.loc[curve[x] > 0, x].min() for curve in curves_by_name.values())
    ax.set_xlim(1.2, np.clip(least, 0.001, 0.01) / 1.2)
    if x == "kept":
        set_log_ticks(ax.xaxis, lambda kept, position: f"{1 - kept:.6g}")
        ax.set_xlabel("sparsity (log scale of the share kept)")
    else:
        set_log_ticks(ax.xaxis, "{x:g}", steps=(1,))
        ax.set_xlabel("share of the weights that can act (live)")
    if y == "speedup":
        ax.set_yscale("log")
        set_log_ticks(ax.yaxis, "{x:g}x")
        ax.set_ylabel("speed-up over dense")
    else:
        ax.set_ylim(0, 1.02)
        ax.set_ylabel("test accuracy")


def set_log_ticks(axis, label, steps=(1, 2, 5)):
    """Put ticks at these multiples of the powers of ten along a logarithmic axis.

    label: a format string of x, or a function of the value and its position.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(label)


def new_figure(width, height):
    """Make an empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=160, layout="constrained")


def draw_main(rows):
    """Draw accuracy against sparsity, as pruned, with a close-up of the dense accuracy."""
    figure = new_figure(5.4, 6.8)
    close, whole = figure.subplots(2, sharex=True, height_ratios=(2, 5))
    rows = rows[rows["repair"] == "none"]
    methods = curves(rows, "none")
    for name in ("matched_weight", "global_weight"):  # need an explanation; the analysis shows them
        if len(methods) > 1:
            methods.pop(name, None)
    dense = rows[rows["method"] == "dense"]
    reference = dense["test_accuracy"].mean()
    chance = 1 / int(dense["layer_sizes"].iloc[0].rpartition("-")[2])
    for ax in (close, whole):
        draw_panel(ax, methods, "kept", "test_accuracy")
        ax.axhline(reference, color="black", lw=0.8, label=f"dense network: {reference:.3f}")
        ax.axhline(chance, color="black", lw=0.8, ls=(0, (1, 3)), label=f"chance: {chance:.3g}")
    whole.set_yticks(np.linspace(0, 1, 11))
    close.set(xlabel=None, ylabel="close-up", ylim=(reference - 0.05, reference + 0.01))
    add_texts(figure, "accuracy after one-shot pruning", rows)
    return figure


def draw_ladder(rows):
    """Draw accuracy after each repair against live weights: a panel for the first two methods."""
    repairs = {repair: curves(rows, repair) for repair in REPAIRS}
    methods = [method for method in STYLES if method in repairs["none"]][:2]
    figure = new_figure(7.2, 4.6)
    axes = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for ax, method in zip(axes, methods):
        steps = {repair: of[method] for repair, of in repairs.items() if method in of}
        draw_panel(ax, steps, "live_fraction", "test_accuracy")
        ax.set_title(STYLES[method]["label"])
        ax.label_outer()
    least = min(ax.get_xlim()[1] for ax in axes)
    for ax in axes:
        ax.set_xlim(right=least)
    add_texts(figure, "what each repair gives back", rows)
    return figure


def draw_analysis(rows):
    """Draw accuracy against sparsity of every method, a panel for each repair; the speed-up."""
    repairs = {repair: curves(rows, repair) for repair in REPAIRS}
    panels = [(REPAIRS[name], repairs[name], "test_accuracy") for name in REPAIRS if repairs[name]]
    panels.append(("speed", repairs["none"], "speedup"))
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(3.6 * columns, 3.2 * lines + 1)
    axes = figure.subplots(lines, columns).flatten()
    for ax, (title, methods, y) in zip(axes, panels):
        draw_panel(ax, methods, "kept", y)
        ax.set_title(title)
    for ax in axes[len(panels) :]:
        ax.remove()
    add_texts(figure, "what pruning breaks, and what repairs it", rows)
    return figure


def add_texts(figure, title, rows):
    """Add title, legend, and what was run in small print, so that a picture can stand alone."""
    first = rows[rows["method"] == "dense"].iloc[0]
    inches = figure.get_figwidth()
    where = rows["device"].unique().tolist() + rows["versions"].unique().tolist()
    caption = (
        f"{first['layer_sizes']} with ReLU; epochs of Adam: {first['epochs']}, at a rate of "
        f"{first['learning_rate']:g}, batches of {first['batch_size']}. Images to refit on: "
        f"{rows['refit_images'].max()}; epochs of retraining: {rows['retrain_epochs'].max()}. "
        "Mean, standard deviation (band) and single networks (pale); seeds: "
        f"{rows['seed'].nunique()}. {'; '.join(where)}."
    )
    figure.supxlabel(textwrap.fill(caption, round(17 * inches)), fontsize=7, color="#444444")
    lines = {}
    for ax in figure.axes:
        lines |= {line.get_label(): line for line in ax.get_legend_handles_labels()[0]}
    figure.legend(
        handles=list(lines.values()),
        title=f"{TITLES.get(first['dataset'], first['dataset'])}: {title}",
        title_fontsize="large",
        ncols=int(inches / 2.3),
        loc="outside upper center",
        frameon=False,
    )


def draw_figures(path):
    """Draw the figures of a CSV file beside it, whatever Matplotlib's settings are."""
    import matplotlib

    rows = read_results(path).astype(COLUMNS)
    rows["kept"] = 1 - rows["sparsity"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        save_figure(path.with_name(f"{path.stem}.png"), draw_main(rows))
        save_figure(path.with_name(f"{path.stem}-ladder.png"), draw_ladder(rows))
        save_figure(path.with_name(f"{path.stem}-analysis.png"), draw_analysis(rows))


def save_figure(path, figure):
    """Save a figure as a PNG."""
    image = io.BytesIO()  # drawn before there is a temporary file, which Ctrl-C would leave behind
    figure.savefig(image, format="png")
    with replacing(path) as temporary:
        temporary.write_bytes(image.getvalue())


# --------------------------------------------------------------------------------------- data


class Dataset(NamedTuple):
    """A data set as it is used; all but the test labels are tensors on the device."""

    name: str
    train_images: object  # [n, pixels], float32, divided by the brightest pixel of training
    train_targets: object  # [n, classes], float32, one-hot
    test_images: object  # as those of training
    test_labels: np.ndarray  # [n], indices of the classes


def load_datasets(names, data_dir):
    """Load the named data sets; where none is named, MNIST and Fashion-MNIST.

    If these two are to be downloaded and cannot be, the bundled digits are used instead. Raises
    UserError for a data set that is unavailable.
    """
    try:
        return [load_dataset(name, data_dir) for name in dict.fromkeys(names or TITLES)]
    except UserError as error:
        if names or data_dir:
            raise
        print(f"{error}\nUsing scikit-learn's {BUNDLED} instead.", file=sys.stderr)
        return [load_dataset(BUNDLED, data_dir)]


def load_dataset(name, data_dir):
    """Load one data set, from the IDX files in a folder of `data_dir` if given, and check it."""
    parts = ("training images", "training labels", "test images", "test labels")
    if data_dir:
        sources = [find_file(data_dir / name, part) for part in parts]
        arrays = [read_idx(path) for path in sources]
    else:
        sources = [f"{name}: {part}" for part in parts]
        arrays = load_digits() if name == BUNDLED else download(name)
    return prepare(name, arrays, sources)


def find_file(folder, part):
    """Return the one file in a folder, or below it, whose name says that it holds a part.

    part: such as "test images", said by `images` after `test` or `t10k`. Copies, such as a packed
    file beside the unpacked one, count as one. Raises UserError if there is none, or several that
    differ.
    """
    which, kind = part.split()
    word = "train" if which == "training" else "(?<![a-z])(test|t10k)"
    files = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
    found = [path for path in files if re.search(f"{word}.*{kind}", path.name.lower())]
    if len(found) == 1 or len({unpacked(path) for path in found}) == 1:
        return found[0]
    some = (found or files)[:9]
    names = ", ".join(str(path.relative_to(folder)) for path in some) or "nothing"
    raise UserError(
        f"{folder} (--data-dir) needs one file of {part}, named like MNIST's; found there: {names}"
    )


def unpacked(path):
    """Return the content of a file, decompressed if it is compressed by gzip."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_idx(path):
    """Read an IDX file of unsigned bytes, plain or compressed by gzip, into an array.

    Raises UserError, naming the file, if it is damaged or holds something else.
    """
    content = unpacked(path)
    try:
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an IDX file of unsigned bytes")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} cannot be read as an IDX file: {error}") from error


def download(name):
    """Load the arrays of a data set with keras.datasets, which downloads and caches it."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train_set, test_set = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception for a failed download
        raise UserError(
            f"{name} is unavailable: download failed: {error!r}; delete an interrupted download in "
            "~/.keras/datasets, or put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
            "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz from "
            f"{PAGES[name]} into DIR/{name} and pass --data-dir DIR"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return *train_set, *test_set


def load_digits():
    """Load scikit-learn's digits, 1,797 images of 8 x 8; the last 360 are the test set."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = digits.images.astype(np.uint8)
    split = len(images) - 360
    return images[:split], digits.target[:split], images[split:], digits.target[split:]


def prepare(name, arrays, sources):
    """Check the arrays of a data set and return them in the form in which they are used.

    arrays: training images [n, height, width], training labels [n], and the same for testing.
    sources: what to call them in messages. Raises UserError unless they fit each other.
    """
    train_images, train_labels, test_images, test_labels = arrays
    fitting = train_images.ndim == 3 and test_images.shape[1:] == train_images.shape[1:]
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        fitting = fitting and images.any() and labels.shape == images.shape[:1]
    if not fitting:
        shapes = ", ".join(f"{file} {array.shape}" for file, array in zip(sources, arrays))
        raise UserError(f"not images [n, height, width], not all black, and n labels: {shapes}")
    classes, train_classes = np.unique(train_labels, return_inverse=True)
    unknown = np.setdiff1d(test_labels, classes)
    if classes.size < 2:
        raise UserError(f"{sources[1]} has one class, {classes.tolist()}; two or more are needed")
    if unknown.size > 0:
        raise UserError(f"{sources[3]} has labels that {sources[1]} lacks: {unknown.tolist()}")
    brightest = float(train_images.max())

    def scaled(images):
        return tf.cast(images.reshape(len(images), -1), tf.float32) / brightest

    targets = tf.one_hot(train_classes, classes.size)
    test_classes = np.searchsorted(classes, test_labels)
    return Dataset(name, scaled(train_images), targets, scaled(test_images), test_classes)


# ------------------------------------------------------------------------------- command line


def between(kind, low, high):
    """Return an argparse type for numbers of this kind from `low` to `high`, both included."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value" by it
    return parse


def expanded(text):
    """Return the path that a text names; shells leave ~ alone in --option=~/folder."""
    return Path(os.path.expanduser(text))


def option_parser():
    """Define the options."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description="Accuracy against sparsity of pruned networks. Defaults are in parentheses.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    fraction = between(float, 0, 1)
    rate = between(float, 1e-6, 1e6)
    natural = between(int, 0, 2**31 - 1)
    count = between(int, 1, 2**31 - 1)
    methods = f"of pruning: {' '.join(METHODS)} ({' '.join(DEFAULT_METHODS)})"
    add("--datasets", nargs="+", help=f"({' '.join(TITLES)}), {BUNDLED}, or folders in --data-dir")
    add("--data-dir", type=expanded, help="read IDX files from a folder with a folder per data set")
    add("--output-dir", type=expanded, default="plots", help="folder to write to (%(default)s)")
    add("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS, metavar="M", help=methods)
    add("--sparsities", nargs="+", type=fraction, default=SPARSITIES, help="fractions %(default)s")
    add("--refit-images", type=natural, default=REFIT_IMAGES, help="0: no refit (%(default)s)")
    add("--retrain-epochs", type=natural, default=0, help="after pruning; 0: none (%(default)s)")
    add("--seeds", nargs="+", type=natural, default=SEEDS, help="one network each %(default)s")
    add("--hidden-units", nargs="+", type=count, default=HIDDEN_UNITS, help="sizes %(default)s")
    add("--epochs", type=count, default=EPOCHS, help="epochs of training (%(default)s)")
    add("--batch-size", type=count, default=BATCH_SIZE, help="images per step (%(default)s)")
    add("--learning-rate", type=rate, default=LEARNING_RATE, help="rate of Adam (%(default)s)")
    add("--save-models", action="store_true", help="save the first seed's networks for Keras")
    add("--merge", nargs="+", type=expanded, metavar="CSV", help="only merge CSV files and draw")
    return parser


def parse_options(arguments):
    """Parse the command line; exit with a message if it is wrong."""
    parser = option_parser()
    options = parser.parse_args(arguments)
    options.seeds = sorted(set(options.seeds))
    options.methods = list(dict.fromkeys(options.methods))
    options.sparsities = sorted(set(options.sparsities) - {0})
    if not options.sparsities:
        parser.error("--sparsities needs one above 0; the dense network is always measured")
    if options.save_models and "neuron" not in options.methods:
        parser.error("--save-models saves neuron-pruned networks: add neuron to --methods")
    for name in options.datasets or []:
        known = options.data_dir or name in (*TITLES, BUNDLED)
        if not known or not re.fullmatch(DATASET_NAME, name):
            known_names = ", ".join([*TITLES, BUNDLED])
            parser.error(f"--datasets {name}: not {known_names}, nor a folder in --data-dir")
    return options


def configure_tensorflow():
    """Import and configure TensorFlow; return the name of the first GPU, or else of the CPU.

    On a GPU, too, products are full float32, and a seed gives the same network each time.
    """
    global tf, keras
    settings = {
        "TF_CPP_MIN_LOG_LEVEL": "3",  # no messages but fatal ones, once TensorFlow has started
        # oneDNN's products are the faster ones, also on CPUs where TensorFlow would not choose them
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "TF_NUM_INTEROP_THREADS": "1",  # the work is one chain of products
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's keras.json says
    try:
        import keras
        import tensorflow as tf
    except Exception as error:  # incompatible packages raise exceptions of many types
        print(error, file=sys.stderr)
        raise UserError(f"TensorFlow cannot be imported; run {INSTALL}") from error
    tf.get_logger().setLevel("ERROR")  # it warns of tracing again, which every training needs
    tf.config.experimental.enable_op_determinism()
    # TensorFloat-32 would round the factors of products to 10 bits
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU, {cpu_name()}"
    try:
        tf.matmul(tf.ones((8, 8)), tf.ones((8, 8))).numpy()
    except (RuntimeError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the GPU cannot be used: {reason}; {USE_CPU}") from error
    return f"GPU, {tf.config.experimental.get_device_details(gpus[0]).get('device_name')}"


def cpu_name():
    """Return the processor's name, if the system reports it, else its architecture."""
    with contextlib.suppress(OSError, TypeError):
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    return platform.processor() or platform.machine()


def say(text):
    """Print a line above the progress bar; raise UserError if standard output cannot be written."""
    try:
        with tqdm.external_write_mode():
            print(text, flush=True)
    except OSError as error:
        sys.stdout = None  # or Python would fail to flush it at exit
        raise UserError(f"standard output cannot be written: {error.strerror}") from error


def run_dataset(dataset, options, device, bar):
    """Run the experiment on a data set and write the results so far after every seed.

    Returns whether the last results are written. A failed write is reported, and made up for by
    the next one.
    """
    import pandas

    path = options.output_dir / f"{dataset.name}.csv"
    versions = f"tensorflow {tf.__version__}, numpy {np.__version__}"
    tables = []
    models = {}
    for seed in options.seeds:
        bar.set_description_str(f"{dataset.name}, seed {seed}")
        began = time.monotonic()
        table, networks = run_seed(dataset, seed, options)
        tables.append(table.assign(device=device, versions=versions))
        models = models or networks  # those of the first seed
        bar.update()
        accuracy = table["test_accuracy"][0]
        seconds = time.monotonic() - began
        rows = pandas.concat(tables)
        try:
            write_results(path, rows)
            draw_figures(path)
            if options.save_models:
                save_models(path, models)
            written = True
        except (UserError, OSError) as error:
            tqdm.write(str(error), file=sys.stderr)
            written = False
        say(f"{dataset.name}, seed {seed}: dense test accuracy {accuracy:.4f}, {seconds:.0f} s")
    best = "retrain" if options.retrain_epochs > 0 else "refit"
    for repair in ("none", best):
        if repair in set(rows["repair"]):
            text = accuracy_table(rows, repair)
            say(f"\n{dataset.name}, {REPAIRS[repair]}: mean test accuracy \u00b1 deviation\n{text}")
    if written:
        say(f"\nsaved in {path}\n")
    return written


def run_job(options):
    """Load the data sets and run the experiment on each."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=options.output_dir).close()  # fails now rather than after training
    device = configure_tensorflow()
    try:
        datasets = load_datasets(options.datasets, options.data_dir)
        for dataset in datasets:
            check_seeds(options.output_dir / f"{dataset.name}.csv", options.seeds)
        say(f"device: {device}")
        unseen_gpu = device.startswith("CPU") and shutil.which("nvidia-smi")
        if unseen_gpu and "CUDA_VISIBLE_DEVICES" not in os.environ:
            say("TensorFlow does not see the NVIDIA GPU; README.md says what to install")
        with progress(total=len(datasets) * len(options.seeds), unit="seed") as bar:
            written = [run_dataset(dataset, options, device, bar) for dataset in datasets]
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        advice = f"pass smaller --hidden-units, --refit-images or --batch-size; on a GPU, {USE_CPU}"
        raise UserError(f"out of memory on the {device}: {advice}") from error
    if not all(written):
        raise UserError("the last results could not be written")


def merge(paths, folder):
    """Merge CSV files by data set into a folder and draw them."""
    rows = merge_results(paths)
    merged = {folder / f"{name}.csv": group for name, group in rows.groupby("dataset")}
    for path, group in merged.items():
        check_seeds(path, group["seed"].astype(int))
    folder.mkdir(parents=True, exist_ok=True)
    for path, group in merged.items():
        write_results(path, group)
        draw_figures(path)
        say(f"merged {group['seed'].nunique()} seeds into {path}")


def main(arguments=None):
    """Run the experiment; exit with a message and a status other than 0 if that fails."""
    options = parse_options(arguments)
    with contextlib.suppress(AttributeError):  # a notebook's lacks it, and a closed one is None
        sys.stdout.reconfigure(errors="replace")  # characters that it cannot encode
    try:
        import matplotlib.figure  # noqa: F401  now rather than after training
        import pandas  # noqa: F401

        if options.merge:
            merge(options.merge, options.output_dir)
        else:
            run_job(options)
    except ImportError as error:
        sys.exit(f"{SCRIPT}: error: {error}; run {INSTALL}")
    except (UserError, OSError) as error:
        sys.exit(f"{SCRIPT}: error: {error}")


if __name__ == "__main__":
    if not hasattr(sys, "ps1"):  # as in IPython, whose %run shares the process with the notebook
        # Ctrl-C ends the process at once; as a KeyboardInterrupt it may wait for TensorFlow
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Matplotlib cannot be imported with an unknown backend, such as a notebook's
        os.environ["MPLBACKEND"] = "agg"
    main()

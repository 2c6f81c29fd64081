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

    python network_pruning.py             writes figures and CSV files to plots/
    python network_pruning.py --help      lists the options

The file follows the experiment: network and training, pruning, methods and repairs, experiment.
What it stands on comes last: data, results, figures, command line. To import: `prune_weights`,
`prune_neurons`, `compact` and `refit`, NumPy in and NumPy out.
"""

import argparse
import contextlib
import functools
import gzip
import inspect
import itertools
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import uuid
import zlib
from pathlib import Path
from typing import NamedTuple

# read before the imports, which take seconds: a later edit is not of the code that runs
SCRIPT = Path(__file__).read_text(encoding="utf-8")

# TensorFlow and Keras read these as they are imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # only fatal messages
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # the fastest products on every CPU
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")  # the work is one chain of products
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # other jobs may need the GPU, too
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's Keras is set to

import keras
import matplotlib.style
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tqdm import tqdm

SPARSITIES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)

progress = functools.partial(tqdm, leave=False, disable=None)  # silent without a terminal


class UserError(Exception):
    """What the user can fix; the message is one line: what is wrong and how to fix it."""


# ----------------------------------------------------------------------- network and training


class Dataset(NamedTuple):
    """A data set as it is used; all but the test labels are tensors on the device."""

    name: str
    train_images: tf.Tensor  # [n, pixels], divided by the brightest pixel of training
    train_targets: tf.Tensor  # [n, classes], one-hot
    test_images: tf.Tensor  # as those of training
    test_labels: np.ndarray  # [n], indices of the classes
    checksum: str  # of images and labels as they came


class Network(NamedTuple):
    """A dense network: ReLU in the hidden layers, logits from the output layer.

    Hidden layers have no bias, so a unit without incoming weights outputs 0 and really is gone.
    """

    hidden: tuple  # kernels of the hidden layers, [fan_in, units] each
    output: np.ndarray  # kernel of the output layer, [fan_in, classes]
    bias: np.ndarray  # of the output layer, [classes]

    @property
    def kernels(self):
        """Kernels of all layers."""
        return (*self.hidden, self.output)

    @property
    def sizes(self):
        """Sizes of the layers, the input's first."""
        return (len(self.kernels[0]), *(kernel.shape[1] for kernel in self.kernels))


def network_of(arrays):
    """Make a network of its kernels, first to last, and its bias."""
    *hidden, output, bias = arrays
    return Network(tuple(hidden), output, bias)


def new_network(sizes, rng):
    """Make an untrained network: Glorot-uniform kernels, a bias of 0; sizes: see `Network.sizes`.

    Glorot and Bengio 2010, "Understanding the Difficulty of Training Deep Feedforward Neural
    Networks".
    """
    arrays = []
    for fan_in, units in itertools.pairwise(sizes):
        limit = math.sqrt(6 / (fan_in + units))
        arrays.append(rng.uniform(-limit, limit, (fan_in, units)).astype(np.float32))
    return network_of([*arrays, np.zeros(sizes[-1], np.float32)])


def layer_inputs(hidden, images):
    """What each layer receives: images [n, pixels], then the output of each hidden layer."""
    inputs = [images]
    for kernel in hidden:
        inputs.append(tf.nn.relu(tf.matmul(inputs[-1], kernel)))
    return inputs


def logits(network, received):
    """Logits [n, classes] of what the output layer receives, [n, units]."""
    return tf.matmul(received, network.output) + network.bias


def train(network, dataset, epochs, options, rng):
    """Return a network trained further by Adam on softmax cross-entropy; zero weights stay zero.

    Adam (Kingma and Ba 2015) starts anew. An epoch is a permutation of the images, drawn from rng.
    options: see `parse_options`. Raises UserError if training diverges.
    """
    variables = [tf.Variable(array) for array in (*network.kernels, network.bias)]
    trained = network_of(variables)
    sparse = [i for i, kernel in enumerate(network.kernels) if not kernel.all()]
    masks = {i: tf.constant(network.kernels[i] != 0, tf.float32) for i in sparse}
    # TensorFlow 1's Adam is faster: one fused operation per variable; Keras 3's is a chain of them
    adam = tf.compat.v1.train.AdamOptimizer(options.learning_rate)

    @tf.function
    def train_epoch(order):
        total = 0.0
        for start in tf.range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            images = tf.gather(dataset.train_images, batch)
            targets = tf.gather(dataset.train_targets, batch)
            with tf.GradientTape() as tape:
                outputs = logits(trained, layer_inputs(trained.hidden, images)[-1])
                losses = tf.nn.softmax_cross_entropy_with_logits(targets, outputs)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, variables)
            for i, mask in masks.items():
                gradients[i] *= mask
            adam.apply_gradients(zip(gradients, variables))
            total += tf.reduce_sum(losses)
        return total / len(order)

    bar = progress(range(epochs), unit="epoch")
    for _ in bar:
        loss = float(train_epoch(tf.constant(rng.permutation(len(dataset.train_images)))))
        bar.set_postfix(loss=f"{loss:.4f}")
        if not loss < 100 * math.log(len(network.bias)):  # far above chance; true of NaN, too
            raise UserError(f"training failed: the loss is {loss:g}; pass a lower --learning-rate")
    return network_of([variable.numpy() for variable in variables])


# ------------------------------------------------------------------------------------ pruning
# NumPy in, NumPy out.


def prune_weights(kernel, sparsity):
    """Return a copy of a kernel with its weights of smallest magnitude set to 0.

    One-shot magnitude pruning (Han et al. 2015, "Learning both Weights and Connections for
    Efficient Neural Networks").

    kernel: floats, of any shape. sparsity: a fraction in [0, 1]. Raises ValueError for another
    sparsity, or a weight that is NaN.
    """
    return zero_lowest(kernel, np.abs(kernel), sparsity)


def prune_neurons(kernel, sparsity):
    """Return a copy of a kernel with its units of smallest L2 norm set to 0.

    The norm is that of a unit's incoming weights (Li et al. 2017, "Pruning Filters for Efficient
    ConvNets", there the L1 norm). A removed unit that has a bias still outputs a constant: set its
    bias to 0 as well.

    kernel: floats, [..., units]. sparsity, errors: as for `prune_weights`.
    """
    incoming = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    return zero_lowest(kernel, np.linalg.norm(incoming, axis=0), sparsity)


def zero_lowest(kernel, scores, sparsity):
    """Return a copy of a kernel with its weights or units of the lowest scores set to 0.

    scores: of the weights, in the shape of the kernel, or of the units, [units]. Exactly
    `round(sparsity * scores.size)` are removed; of equal ones, the first in C order. So a higher
    sparsity removes a superset of what a lower one removes. Takes linear time.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is a fraction in [0, 1], not {sparsity}")
    if np.isnan(scores).any():
        raise ValueError("weights must not be NaN")
    count = round(sparsity * scores.size)
    if count == 0:
        return kernel.copy()
    limit = np.partition(scores, count - 1, axis=None)[count - 1]
    removed = scores < limit
    ties = np.flatnonzero(scores == limit)
    removed.flat[ties[: count - np.count_nonzero(removed)]] = True
    return np.where(removed, kernel.dtype.type(0), kernel)


def live_units(kernels):
    """Return the indices of all inputs, of the live units of each hidden layer, and of all outputs.

    A hidden unit is live if a path of nonzero weights leads through it from an input to an output.
    If there is no path at all, unit 0 of each hidden layer is returned: frameworks have no layers
    without units. kernels: [fan_in, units] each, first to output.
    """
    reached = [np.full(len(kernels[0]), True)]  # whether a path leads there from an input
    for kernel in kernels:
        reached.append(kernel[reached[-1]].any(axis=0))
    reaching = [np.full(kernels[-1].shape[1], True)]  # whether a path leads to an output
    for kernel in reversed(kernels):
        reaching.insert(0, kernel[:, reaching[0]].any(axis=1))
    hidden = [np.flatnonzero(a & b) for a, b in zip(reached[1:-1], reaching[1:-1])]
    hidden = [units if units.size else np.array([0]) for units in hidden]
    return [np.arange(reached[0].size), *hidden, np.arange(reaching[-1].size)]


def compact(kernels):
    """Return the kernels of a smaller dense network that computes the same.

    Units that are not live are deleted with their columns and rows; inputs and outputs stay. That
    is exact for ReLU layers without bias, where a unit without incoming weights outputs 0, and in
    training too, as long as zero weights stay zero: the deleted ones would get no gradient. If no
    path is left, all weights are 0.

    kernels: as for `live_units`.
    """
    units = live_units(kernels)
    small = [kernel[np.ix_(*ends)] for kernel, ends in zip(kernels, itertools.pairwise(units))]
    connected = all(kernel.any() for kernel in small)
    return small if connected else [np.zeros_like(kernel) for kernel in small]


def refit(kernel, inputs, targets, steps=10, ridge=0.01):
    """Return a copy of a pruned kernel, its nonzero weights refit to come close to the targets.

    Minimizes the squared error of inputs @ kernel, with a ridge on the change of the weights, by
    conjugate gradients on the normal equations, scaled by their diagonal, for all units at once
    (Castellano, Fanelli and Pelillo 1997, "An Iterative Pruning Algorithm for Feedforward Neural
    Networks"; Meng et al. 2024, "ALPS"). Zero weights stay zero.

    kernel: [fan_in, units]. inputs: [n, fan_in], what the layer receives in the pruned network.
    targets: [n, units], what it should compute before bias and activation, such as what it computes
    in the dense network. ridge: above 0, relative to the mean square of the inputs that are not
    always 0. Steps and ridge were chosen on 10,000 held-out training images: 40 steps gain at most
    1.1 points of accuracy. Raises ValueError if the result is not finite.
    """
    dtype = np.result_type(kernel, inputs, targets, np.float32)  # squares of bytes would overflow
    kernel, inputs, targets = (array.astype(dtype) for array in (kernel, inputs, targets))
    gram = inputs.T @ inputs
    squares = gram.diagonal()
    penalty = ridge * squares.sum() / max(np.count_nonzero(squares), 1)
    gram += penalty * np.eye(len(gram), dtype=dtype)
    scale = 1 / np.sqrt(np.maximum(gram.diagonal(), np.finfo(dtype).tiny))[:, np.newaxis]
    right = scale * (inputs.T @ (targets - inputs @ kernel))
    change = scale * conjugate_gradients(scale * gram * scale.T, right, kernel != 0, steps)
    if not np.isfinite(change).all():
        raise ValueError("kernel, inputs and targets must be finite and of moderate size")
    return kernel + change


def refit_layers(kernels, images, targets):
    """Refit kernels layer by layer, each on the outputs of the layers refit before it."""
    inputs = images
    fitted = []
    for kernel, layer_targets in zip(kernels, targets):
        fitted.append(refit(kernel, inputs, layer_targets))
        inputs = np.maximum(inputs @ fitted[-1], 0)
    return fitted


def conjugate_gradients(matrix, right, kept, steps):
    """Solve matrix @ x = right for each column of x, which is 0 where `kept` is False.

    matrix: [n, n], symmetric, positive semidefinite, with a diagonal of ones. right, kept: [n,
    columns]. A column that has converged up to rounding stays as it is.
    """
    epsilon = np.finfo(matrix.dtype).eps
    column_products = functools.partial(np.einsum, "ij,ij->j")
    kept = kept.astype(matrix.dtype)
    x = np.zeros_like(right)
    residual = direction = kept * right
    square = column_products(residual, residual)
    negligible = epsilon**2 * square
    for _ in range(steps):
        curved = kept * (matrix @ direction)
        curvature = column_products(direction, curved)
        # a curvature below this is rounding, and a step divided by it would lead anywhere
        visible = epsilon * column_products(direction, direction)
        going = (square > negligible) & (curvature > visible)
        step = np.where(going, square / np.where(going, curvature, 1), 0)
        x += step * direction
        residual = residual - step * curved
        previous = np.where(going, square, 1)
        square = column_products(residual, residual)
        direction = residual + square / previous * direction
    return x


# ------------------------------------------------------------------------ methods and repairs
# To add one, write a function and enter it in METHODS or REPAIRS; an entry in STYLES, below, gives
# it a title and a colour.
#
# A method takes the kernels of the hidden layers, what each of these receives for the images to
# refit on, a sparsity and a generator, and returns pruned copies of the kernels. The generator
# starts anew at each sparsity, so that a higher one removes a superset of what a lower one removes.


def weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude."""
    return [prune_weights(kernel, sparsity) for kernel in kernels]


def neuron(kernels, inputs, sparsity, rng):
    """Remove the neurons of smallest L2 norm."""
    return [prune_neurons(kernel, sparsity) for kernel in kernels]


def matched_weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude until as many are left as `neuron` leaves live."""
    output = np.ones((kernels[-1].shape[1], 1))  # `compact` needs one; every unit reaches it
    *live, _ = compact([*neuron(kernels, inputs, sparsity, rng), output])
    removed = [1 - np.count_nonzero(left) / kernel.size for kernel, left in zip(kernels, live)]
    return [prune_weights(kernel, share) for kernel, share in zip(kernels, removed)]


def scaled_weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude times the L2 norm of the input that they multiply.

    The score of Wanda (Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language
    Models"). Wanda compares weights within each unit, this within each layer.
    """
    norms = [np.linalg.norm(received, axis=0)[:, np.newaxis] for received in inputs]
    scores = [np.abs(kernel) * norm for kernel, norm in zip(kernels, norms)]
    return [zero_lowest(kernel, score, sparsity) for kernel, score in zip(kernels, scores)]


def gradual_scaled(kernels, inputs, sparsity, rng):
    """Prune by `scaled_weight` in the steps of SPARSITIES; refit the hidden layers between them."""
    images = inputs[0]
    targets = [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, kernels)]
    for step in SPARSITIES:
        if step < sparsity:
            kernels = refit_layers(scaled_weight(kernels, inputs, step, rng), images, targets)
            inputs = [np.asarray(received) for received in layer_inputs(kernels, images)]
    return scaled_weight(kernels, inputs, sparsity, rng)


def global_weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude of all layers together."""
    weights = prune_weights(np.concatenate([kernel.ravel() for kernel in kernels]), sparsity)
    layers = np.split(weights, np.cumsum([kernel.size for kernel in kernels])[:-1])
    return [layer.reshape(kernel.shape) for layer, kernel in zip(layers, kernels)]


def random_weight(kernels, inputs, sparsity, rng):
    """Remove weights at random."""
    scores = [rng.permutation(kernel.size).reshape(kernel.shape) for kernel in kernels]
    return [zero_lowest(kernel, score, sparsity) for kernel, score in zip(kernels, scores)]


def random_neuron(kernels, inputs, sparsity, rng):
    """Remove neurons at random."""
    scores = [rng.permutation(kernel.shape[1]) for kernel in kernels]
    return [zero_lowest(kernel, score, sparsity) for kernel, score in zip(kernels, scores)]


METHODS = {
    "weight": weight,
    "neuron": neuron,
    "matched_weight": matched_weight,
    "scaled_weight": scaled_weight,
    "gradual_scaled": gradual_scaled,
    "global_weight": global_weight,
    "random_weight": random_weight,
    "random_neuron": random_neuron,
}

# A repair takes the live part of a pruned network, the images to refit on, and what each of its
# layers should compute before bias and activation: arrays [n, units], from the dense network. It
# returns a repaired network. Retraining is measured like a repair, but needs the whole data set.


def none(network, images, targets):
    """Leave a network as it was pruned."""
    return network


def no_bias(network, images, targets):
    """Leave out the output bias."""
    return network._replace(bias=np.zeros_like(network.bias))


def refit_output(network, images, targets):
    """Refit the output layer alone."""
    received = layer_inputs(network.hidden, images)[-1].numpy()
    return network._replace(output=refit(network.output, received, targets[-1]))


def refit_all(network, images, targets):
    """Refit all layers."""
    return network_of([*refit_layers(network.kernels, images, targets), network.bias])


REPAIRS = {"none": none, "no_bias": no_bias, "refit_output": refit_output, "refit": refit_all}

# --------------------------------------------------------------------------------- experiment


def rng_for(seed, purpose):
    """Make the generator of one purpose, so that no option changes what another one draws."""
    return np.random.default_rng([seed, *purpose.encode()])


def train_dense(dataset, seed, options):
    """Train the dense network of a seed."""
    sizes = (dataset.train_images.shape[1], *options.hidden_units, dataset.train_targets.shape[1])
    untrained = new_network(sizes, rng_for(seed, "new dense"))
    return train(untrained, dataset, options.epochs, options, rng_for(seed, "train dense"))


def prune_and_repair(trained, dataset, seed, options):
    """Yield method, sparsity, repair and network for all that are to be measured.

    The dense network comes first, as method "dense" at sparsity 0. Methods and repairs get
    read-only arrays: one that changed them in place would change them for all that follow.
    """
    order = rng_for(seed, "refit images").permutation(len(dataset.train_images))
    images = tf.gather(dataset.train_images, order[: options.refit_images]).numpy()
    # what each layer of the dense network receives and computes
    inputs = [np.asarray(received) for received in layer_inputs(trained.hidden, images)]
    outputs = [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, trained.kernels)]
    make_read_only([*trained.kernels, trained.bias, *inputs])
    levels = [("dense", 0.0), *itertools.product(options.methods, options.sparsities)]
    for method, sparsity in progress(levels, unit="network"):
        hidden = trained.hidden
        if method != "dense":
            rng = rng_for(seed, f"prune {method}")
            hidden = METHODS[method](trained.hidden, inputs[:-1], sparsity, rng)
        kernels = [np.asarray(kernel, np.float32) for kernel in (*hidden, trained.output)]
        pruned = network_of([*compact(kernels), trained.bias])
        targets = tuple(output[:, live] for output, live in zip(outputs, live_units(kernels)[1:]))
        make_read_only([*pruned.kernels, *targets])
        for repair, function in REPAIRS.items():
            yield method, sparsity, repair, function(pruned, images, targets)
        if options.retrain_epochs:
            rng = rng_for(seed, f"train {method} {sparsity}")
            retrained = train(pruned, dataset, options.retrain_epochs, options, rng)
            yield method, sparsity, "retrain", retrained
        if options.retrain_epochs and method == "neuron" and pruned.output.any():
            # a control, where anything is left: a new network of its size, for as many epochs
            untrained = new_network(pruned.sizes, rng_for(seed, f"new scratch {sparsity}"))
            rng = rng_for(seed, f"train scratch {sparsity}")
            epochs = options.epochs + options.retrain_epochs
            yield "scratch", sparsity, "retrain", train(untrained, dataset, epochs, options, rng)


def make_read_only(arrays):
    """Make arrays raise ValueError where they are changed in place."""
    for array in arrays:
        array.flags.writeable = False


def evaluate(outputs, labels):
    """Accuracy in [0, 1] and mean cross-entropy in nats of logits [n, classes]."""
    outputs = outputs.astype(np.float64)
    losses = np.logaddexp.reduce(outputs, axis=1) - outputs[np.arange(len(labels)), labels]
    return np.mean(outputs.argmax(axis=1) == labels), losses.mean()


def measure_speed(layer_sizes, images, rounds=3):
    """Time a pass over images for networks of these sizes; return {sizes: speed-up over the first}.

    Only the sizes decide how fast a network is, so the weights are random ones. Every round visits
    every network once, so that changes in the machine's speed affect all alike; the best counts.
    """
    seconds = dict.fromkeys(layer_sizes, math.inf)
    networks = {}
    for sizes in seconds:
        network = new_network(sizes, np.random.default_rng(0))
        networks[sizes] = network_of(map(tf.constant, [*network.kernels, network.bias]))
    end = time.monotonic() + 1  # second: small networks need more rounds
    while rounds > 0 or time.monotonic() < end:
        rounds -= 1
        for sizes, network in networks.items():
            began = time.perf_counter()
            logits(network, layer_inputs(network.hidden, images)[-1]).numpy()  # waits for a GPU
            seconds[sizes] = min(seconds[sizes], time.perf_counter() - began)
    return {sizes: seconds[layer_sizes[0]] / own for sizes, own in seconds.items()}


def run_seed(dataset, seed, options):
    """Run the experiment with a seed on a data set; return a row for each network."""
    trained = dense_network(dataset, seed, options)
    checksum = fingerprint(*map(zlib.crc32, [*trained.kernels, trained.bias]))
    weights = sum(kernel.size for kernel in trained.hidden)  # the output layer is never pruned
    rows = []
    hidden = None
    for method, sparsity, repair, network in prune_and_repair(trained, dataset, seed, options):
        if network.hidden is not hidden:  # most repairs leave the hidden layers: one pass for all
            hidden = network.hidden
            received = layer_inputs(hidden, dataset.test_images)[-1]
        accuracy, loss = evaluate(logits(network, received).numpy(), dataset.test_labels)
        rows.append(
            {
                "dataset": dataset.name,
                "seed": seed,
                "method": method,
                "sparsity": sparsity,
                "repair": repair,
                "test_accuracy": accuracy,
                "test_loss": loss,
                "live_fraction": sum(map(np.count_nonzero, hidden)) / weights,
                "layer_sizes": network.sizes,
                "dense_network": checksum,
            }
        )
        if options.save_models and method == "neuron":
            name = f"{dataset.name}-seed{seed}-{method}-{sparsity:g}-{repair}.keras"
            with replacing(options.output_dir / "networks" / name) as partial:
                keras_model(network).save(partial)
    speedups = measure_speed([row["layer_sizes"] for row in rows], dataset.test_images)
    for row in rows:
        row["speedup"] = speedups[row["layer_sizes"]]
        row["layer_sizes"] = "-".join(map(str, row["layer_sizes"]))
    return rows


# --------------------------------------------------------------------------------------- data

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}  # downloaded by keras.datasets
PARTS = {  # of a data set, and regular expressions for the names of their IDX files
    "training images": "train.*images",
    "training labels": "train.*labels",
    "test images": "(t10k|test).*images",
    "test labels": "(t10k|test).*labels",
}


def load_datasets(names, data_dir):
    """Load the named data sets; without names, MNIST and Fashion-MNIST, or else the digits."""
    if names or data_dir:
        return [load_dataset(name, data_dir) for name in names or TITLES]
    try:
        return [load_dataset(name) for name in TITLES]
    except UserError as error:
        tqdm.write(f"{error}\nUsing scikit-learn's digits instead, 1,437 images.", sys.stderr)
        return [load_dataset("digits")]


def load_dataset(name, data_dir=None):
    """Load one data set, check it and scale its images."""
    arrays = read_arrays(name, data_dir)
    train_images, train_labels, test_images, test_labels = arrays
    labelled = len(train_images) == len(train_labels) and len(test_images) == len(test_labels)
    if not labelled or train_images.shape[1:] != test_images.shape[1:]:
        shapes = ", ".join(f"{part} {array.shape}" for part, array in zip(PARTS, arrays))
        raise UserError(f"{name}: these do not fit each other: {shapes}")
    classes, train_classes = np.unique(train_labels, return_inverse=True)
    if not np.isin(test_labels, classes).all():
        raise UserError(f"{name}: the test set has labels that the training set lacks")

    def pixels(images):
        return tf.cast(images.reshape(len(images), -1), tf.float32) / float(train_images.max())

    return Dataset(
        name=os.path.basename(name),
        train_images=pixels(train_images),
        train_targets=tf.one_hot(train_classes, len(classes)),
        test_images=pixels(test_images),
        test_labels=np.searchsorted(classes, test_labels),
        checksum=fingerprint(*map(zlib.crc32, arrays)),
    )


def read_arrays(name, data_dir):
    """Return images [n, height, width] and labels [n] of training, then those of the test set."""
    if data_dir and (data_dir / name).is_dir():
        return [read_idx(data_dir / name, part) for part in PARTS]
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        images = images.astype(np.uint8).reshape(-1, 8, 8)
        return images[:-360], labels[:-360], images[-360:], labels[-360:]
    if data_dir:
        raise UserError(f"{data_dir / name} is not a folder; --data-dir is the one above {name}/")
    if name not in TITLES:
        raise UserError(f"{name} is neither {', '.join(TITLES)} nor digits: pass --data-dir")
    try:
        train_set, test_set = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception
        advice = f"put its files into DIR/{name} and pass --data-dir DIR"
        raise UserError(f"{name} cannot be downloaded: {error!r}; {advice}") from error
    return *train_set, *test_set


def read_idx(folder, part):
    """Read the IDX file of one of PARTS in or below a folder, plain or packed by gzip."""
    files = sorted(path for path in folder.glob("**/[!.]*") if path.is_file())
    found = [path for path in files if re.search(PARTS[part], path.name.lower())]
    if len({str(path).removesuffix(".gz") for path in found}) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found or files) or "no file"
        raise UserError(f"{folder} must have one IDX file of {part}, but has {names:.200}")
    try:
        content = found[0].read_bytes()
        if content.startswith(b"\x1f\x8b"):  # gzip, whatever its name says
            content = gzip.decompress(content)
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * shape.size).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise UserError(f"{found[0]} is not a whole IDX file of bytes: {error}") from error


# ------------------------------------------------------------------------------------ results
# A command writes a CSV to `runs` in the output folder for each data set and seed. The tables and
# figures are made from all that are there, so a command adds its seeds, methods, sparsities and
# repairs to those of others.

KEY = ["dataset", "seed", "method", "sparsity", "repair"]  # of a row
TRAINING = ["data", "training_code", "hidden_units", "epochs", "batch_size", "learning_rate"]
RECIPE = [*TRAINING, "refit_images", "retrain_epochs"]  # the same for a data set in a folder
TEXT = ["dataset", *RECIPE, "dense_network", "script"]  # columns that are compared as text


def fingerprint(*values):
    """Return a checksum of values, as eight hexadecimal digits."""
    return f"{zlib.crc32(repr(values).encode()):08x}"


# a dense network of other code that trains is not used again
SECTION = SCRIPT.partition("- network and training\n")[2].partition("- pruning\n")[0]
TRAINING_CODE = fingerprint(SECTION, *map(inspect.getsource, (load_dataset, rng_for, train_dense)))
IN_SCRIPT = {*METHODS.values(), *REPAIRS.values()}  # other files may add to them


def recipe_of(dataset, options, names=RECIPE):
    """Return what a run works on and how, as the columns of its CSV."""
    values = {"data": dataset.checksum, "training_code": TRAINING_CODE, **vars(options)}
    return {name: str(values[name]) for name in names}


@contextlib.contextmanager
def replacing(path):
    """Give a path to write a file to, and move it to `path` after that: others see it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    yield partial
    partial.replace(path)


def keras_model(network):
    """Build a compiled keras.Sequential of a network: images [n, pixels] in [0, 1] to logits."""
    pixels, *hidden, classes = network.sizes
    layers = [keras.layers.Dense(units, "relu", use_bias=False) for units in hidden]
    model = keras.Sequential([keras.Input([pixels]), *layers, keras.layers.Dense(classes)])
    model.set_weights([*network.kernels, network.bias])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])  # SGD keeps no state to save
    return model


def dense_network(dataset, seed, options):
    """Return the trained dense network of a seed; it is trained once for each output folder."""
    made_by = fingerprint(recipe_of(dataset, options, TRAINING))
    path = options.output_dir / "networks" / f"{dataset.name}-seed{seed}-{made_by}.keras"
    if path.exists():
        return network_of(keras.models.load_model(path).get_weights())
    network = train_dense(dataset, seed, options)
    with replacing(path) as partial:
        keras_model(network).save(partial)
    return network


def read_runs(folder):
    """Return the tables of all runs in a folder, the newest last."""
    tables = []
    for path in sorted(folder.glob("runs/[!.]*.csv"), key=os.path.getmtime):
        try:
            table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str))
            if not {*KEY, *TEXT} <= set(table):
                raise ValueError("it lacks columns")
        except ValueError as error:  # pandas' are such, too
            raise UserError(f"{path} is no result of this script: {error}; move it away") from error
        tables.append(table.assign(file=path))
    return tables


def check(rows):
    """Raise UserError unless a data set has one recipe and each of its seeds one dense network."""
    # no epochs of retraining go with any number of them
    known = rows.assign(retrain_epochs=rows["retrain_epochs"].replace("0", np.nan))
    for column in [*RECIPE, "dense_network"]:
        group = ["dataset", "seed"] if column == "dense_network" else ["dataset"]
        for names, same in known.groupby(group):
            versions = same.dropna(subset=column).drop_duplicates(column)
            if len(versions) > 1:
                (one, file), (other, other_file) = versions[[column, "file"]].to_numpy()[:2]
                raise UserError(
                    f"{', '.join(map(str, names))}: {column} is {one} in {file}, but {other} in "
                    f"{other_file}; pass another --output-dir, or move one of them away"
                )


def collect(folder):
    """Return the rows of all runs in a folder; of those with the same key, the newest."""
    tables = read_runs(folder)
    if not tables:
        raise UserError(f"{folder / 'runs'} has no results")
    rows = pd.concat(tables, ignore_index=True)
    check(rows)
    return rows.drop_duplicates(KEY, keep="last").drop(columns="file")


# ------------------------------------------------------------------------------------ figures
# Blue and orange differ for most kinds of colour vision, and in lightness when printed in grey.

STYLES = {  # of methods and repairs, as for Axes.plot, in the order of the legends
    "weight": dict(label="weights, by magnitude", color="#00508f", marker="o"),
    "neuron": dict(label="neurons, by L2 norm", color="#e07b00", marker="s", ls="--"),
    "matched_weight": dict(label="weights, matched to neurons", color="#45a5e0", marker="^"),
    "scaled_weight": dict(label="weights, magnitude × input", color="#c03030", marker="P", ls="-."),
    "gradual_scaled": dict(label="weights, gradual with refits", color="#106060", marker="X"),
    "global_weight": dict(label="weights, ranked globally", color="#9040b0", marker="d", lw=1),
    "random_weight": dict(label="random weights", color="#707070", marker="o", ls=":", lw=1),
    "random_neuron": dict(label="random neurons", color="#a0a0a0", marker="s", ls=":", lw=1),
    "scratch": dict(label="small networks from scratch", color="#2a8000", marker="v", ls="-."),
    # repairs, the stronger the darker
    "none": dict(label="as pruned", color="#f0a030", marker="o"),
    "no_bias": dict(label="without the output bias", color="#e06040", marker="^", ls=":"),
    "refit_output": dict(label="output layer refit", color="#b04080", marker="D", ls="-."),
    "refit": dict(label="refit", color="#5050b0", marker="s", ls="--"),
    "retrain": dict(label="retrained", color="#101040", marker="v"),
}
TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)  # sparsities


def style_of(name):
    """Return how to draw a method or repair; one without a style gets the next colour."""
    color = matplotlib.colormaps["turbo"](37 * len(STYLES) % 256)
    return STYLES.setdefault(name, dict(label=name, marker="x", color=color))


def ordered(names):
    """Return the names of methods or repairs without the dense one: as in STYLES, then others."""
    names = set(names) - {"dense"}
    return [name for name in STYLES if name in names] + sorted(names - set(STYLES))


def draw_panel(ax, rows, by, x="kept", y="test_accuracy"):
    """Draw column y against column x: mean, deviation and single seeds of each curve.

    by: the column that tells the curves apart, "method" or "repair". A curve begins with the dense
    networks of its seeds. Sparsities at which nothing is left in any network are left out.
    """
    rows = rows[rows.groupby([by, "sparsity"])["live_fraction"].transform("max") > 0]
    rows = rows.assign(kept=1 - rows["sparsity"])
    pruned = rows[rows["sparsity"] > 0]
    for name in ordered(pruned[by]):
        seeds = pruned.loc[pruned[by] == name, "seed"]
        curve = rows[rows[by].isin([name, "dense"]) & rows["seed"].isin(seeds)]
        # a row for each sparsity; a mean of other seeds than its neighbours' would mislead
        shared = curve.pivot_table([x, y], "sparsity", "seed").dropna()
        places = shared[x].mean(axis=1)
        mean = shared[y].mean(axis=1)
        deviation = shared[y].std(axis=1)
        [line] = ax.plot(places, mean, ms=4, **style_of(name))
        pale = dict(color=line.get_color(), alpha=0.2)
        ax.fill_between(places, mean - deviation, mean + deviation, lw=0, **pale)
        for _, single in curve.sort_values("sparsity").groupby("seed"):
            ax.plot(single[x], single[y], lw=0.5, **pale)
    ax.set(xscale="log", xlabel="sparsity (log scale of the share kept)", ylabel="test accuracy")
    ax.xaxis.set_major_formatter("{x:g}")
    if x == "kept":
        ax.set_xticks([1 - tick for tick in TICKS], [f"{tick:g}" for tick in TICKS])
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    # the sparser, the further right; set after the ticks, which would widen it
    ax.set_xlim(1.2, rows.loc[rows[x] > 0, x].min() / 1.2)
    if y == "test_accuracy":
        ax.set_ylim(0, 1.02)
    ax.grid(color="#dddddd", lw=0.6)


def draw_accuracy(figure, rows):
    """Draw accuracy against sparsity, as pruned, with a close-up of the dense accuracy."""
    figure.set_size_inches(5.4, 6.8)
    # matched weights are left out: they need an explanation
    rows = rows[(rows["repair"] == "none") & (rows["method"] != "matched_weight")]
    best = rows.loc[rows["method"] == "dense", "test_accuracy"].mean()
    worst = rows["majority_accuracy"].iloc[0]
    close, whole = figure.subplots(2, sharex=True, height_ratios=(2, 5))
    for ax in (close, whole):
        draw_panel(ax, rows, "method")
        ax.axhline(best, color="black", lw=0.8, label=f"dense network: {best:.3f}")
        ax.axhline(worst, color="black", lw=0.8, ls=":", label=f"always one class: ≤ {worst:.3f}")
    whole.set_yticks(np.linspace(0, 1, 11))
    close.set(xlabel=None, ylabel="close-up", ylim=(best - 0.05, best + 0.01))


def draw_repairs(figure, rows):
    """Draw accuracy after each repair against live weights: a panel for the first two methods."""
    figure.set_size_inches(7.2, 4.6)
    methods = ordered(set(rows["method"]) - {"scratch"})[:2]
    axes = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for ax, method in zip(axes, methods):
        draw_panel(ax, rows[rows["method"].isin(["dense", method])], "repair", "live_fraction")
        ax.set(title=style_of(method)["label"], xlabel="share of the weights that can act (live)")
        ax.label_outer()
    live = rows.loc[rows["method"].isin(methods) & (rows["live_fraction"] > 0), "live_fraction"]
    axes[0].set_xlim(right=min([0.1, *live]) / 1.2)  # at least to the label 0.1


def draw_methods(figure, rows):
    """Draw accuracy against sparsity of every method, a panel for each repair; the speed-up."""
    repairs = ordered(rows["repair"])
    columns = math.ceil((len(repairs) + 1) / 2)
    figure.set_size_inches(3.6 * columns, 7.4)
    axes = figure.subplots(2, columns).flat
    for ax, repair in zip(axes, repairs):
        draw_panel(ax, rows[rows["repair"] == repair], "method")
        ax.set_title(style_of(repair)["label"])
    speed, *empty = axes[len(repairs) :]
    draw_panel(speed, rows[rows["repair"] == "none"], "method", y="speedup")
    speed.set(title="speed", ylabel="speed-up over dense")
    speed.set_yscale("log", subs=(2, 5))
    speed.yaxis.set_major_formatter("{x:g}x")
    speed.yaxis.set_minor_formatter("{x:g}x")
    for ax in empty:
        ax.remove()


FIGURES = {  # by the end of the file's name: the title, and the function that draws it
    "accuracy": ("accuracy after pruning", draw_accuracy),
    "repairs": ("what each repair gives back", draw_repairs),
    "methods": ("what pruning breaks, and what repairs it", draw_methods),
}


def add_legend(figure, title):
    """Add one legend of all panels, under the title of the figure."""
    lines = {}
    for ax in figure.axes:
        lines |= {line.get_label(): line for line in ax.get_legend_handles_labels()[0]}
    figure.legend(
        handles=list(lines.values()),
        title=title,
        title_fontsize="large",
        ncols=int(figure.get_figwidth() / 2.3),
        loc="outside upper center",
        frameon=False,
    )


def add_caption(figure, rows):
    """Add what was run in small print, so that the picture can stand alone."""
    recipe = rows.iloc[0]
    seeds = rows.groupby(["repair", "method", "sparsity"])["seed"].nunique()
    fewest_to_most = " to ".join(map(str, sorted({seeds.min(), seeds.max()})))
    spread = "; mean, standard deviation (band) where no seed is missing, single networks (pale)"
    text = (
        f"Hidden units: {recipe['hidden_units']}, ReLU; epochs of Adam: {recipe['epochs']}, at a "
        f"rate of {recipe['learning_rate']}, batches of {recipe['batch_size']}. Images to refit "
        f"on: {recipe['refit_images']}; epochs of retraining: {rows['retrain_epochs'].max()}. "
        f"Seeds per point: {fewest_to_most}{spread if seeds.max() > 1 else ''}. "
        f"{'; '.join([*rows['device'].unique(), *rows['versions'].unique()])}; "
        f"script {', '.join(rows['script'].unique())}."
    )
    width = round(17 * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, width), fontsize=7, color="#444444")


def save_results(name, rows, folder):
    """Write the table and the figures of a data set, whatever the user's settings of Matplotlib."""
    with replacing(folder / f"{name}.csv") as partial:
        rows.sort_values("seed", kind="stable").to_csv(partial, index=False)
    for kind, (title, draw) in FIGURES.items():
        path = folder / f"{name}-{kind}.png"
        with matplotlib.style.context("default"), replacing(path) as partial:
            figure = Figure(dpi=160, layout="constrained")
            draw(figure, rows)
            add_legend(figure, f"{TITLES.get(name, name)}: {title}")
            add_caption(figure, rows)
            figure.savefig(partial)


# ------------------------------------------------------------------------------- command line


def parse_options(arguments=None):
    """Parse the command line; the defaults are the recipe of the original experiment."""
    parser = argparse.ArgumentParser(
        description="Accuracy against sparsity of pruned networks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = functools.partial(parser.add_argument, metavar="")
    sets = "mnist, fashion_mnist, digits, or folders in --data-dir"
    usual = ["weight", "neuron", "matched_weight", "random_weight", "random_neuron"]
    sizes = [1000, 1000, 500, 200]
    add("--datasets", nargs="+", type=os.path.normpath, help=sets)
    add("--data-dir", type=Path, help="folder with a folder of IDX files for each data set")
    add("--output-dir", type=Path, default=Path("plots"), help="folder to write to, or to add to")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one network each")
    add("--methods", nargs="+", choices=METHODS, default=usual, help=f"of {', '.join(METHODS)}")
    add("--sparsities", nargs="+", type=float, default=SPARSITIES, help="fractions to remove")
    add("--hidden-units", nargs="+", type=int, default=sizes, help="sizes of hidden layers")
    add("--epochs", type=int, default=10, help="epochs of training")
    add("--batch-size", type=int, default=128, help="images per step of training")
    add("--learning-rate", type=float, default=1e-3, help="learning rate of Adam")
    add("--refit-images", type=int, default=1000, help="training images to refit on")
    add("--retrain-epochs", type=int, default=0, help="epochs of training after pruning")
    parser.add_argument("--save-models", action="store_true", help="save neuron-pruned networks")
    parser.add_argument("--draw", action="store_true", help="only draw what is in --output-dir")
    options = parser.parse_args(arguments)
    # in one order, so that the same command is known again
    options.methods = [name for name in METHODS if name in options.methods]
    # as the CSV has them; the dense network, of sparsity 0, is always measured
    options.sparsities = sorted({round(sparsity, 6) for sparsity in options.sparsities} - {0})
    if not all(0 < sparsity <= 1 for sparsity in options.sparsities or [math.nan]):
        parser.error("--sparsities are fractions: above 0, up to 1")
    return options


def configure_tensorflow():
    """Configure TensorFlow; return the name of the device that it computes on.

    On a GPU, too, products are full float32, and a seed gives the same network each time.
    """
    tf.get_logger().setLevel("ERROR")  # it warns where each training traces a function of its own
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(0)  # or the random operations of a notebook would fail from now on
    # TensorFloat-32 would round the factors of products to 10 bits
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return f"GPU, {tf.config.experimental.get_device_details(gpus[0]).get('device_name')}"
    if shutil.which("nvidia-smi"):
        advice = "to use it, pip install 'tensorflow[and-cuda]'"
        tqdm.write(f"TensorFlow does not see the NVIDIA GPU; {advice}", sys.stderr)
    return "CPU"


def run(options):
    """Run the experiment with each seed on each data set; write a CSV after every seed."""
    device = configure_tensorflow()
    datasets = load_datasets(options.datasets, options.data_dir)
    folder = options.output_dir / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    before = read_runs(options.output_dir)
    planned = [{"dataset": dataset.name, **recipe_of(dataset, options)} for dataset in datasets]
    if before:  # refuse another recipe before any work
        check(pd.concat([*before, pd.DataFrame(planned).assign(file="this command")]))
    script = fingerprint(SCRIPT)
    # what another file has added may have changed
    added = {*map(METHODS.get, options.methods), *REPAIRS.values()} - IN_SCRIPT
    done = {table["file"][0] for table in before if {*table["script"]} == {script} and not added}
    for dataset, seed in progress([*itertools.product(datasets, options.seeds)], unit="seed"):
        recipe = recipe_of(dataset, options)
        command = fingerprint(options.methods, options.sparsities, recipe)
        path = folder / f"{dataset.name}-seed{seed}-{command}.csv"
        if path in done and not options.save_models:
            path.touch()  # now the newest, which counts: another version may have run since
            tqdm.write(f"{dataset.name}, seed {seed}: done before; to repeat it, remove {path}")
            continue
        began = time.monotonic()
        rows = run_seed(dataset, seed, options)
        table = pd.DataFrame(rows).assign(
            majority_accuracy=np.bincount(dataset.test_labels).max() / len(dataset.test_labels),
            **recipe,
            device=device,
            versions=f"tensorflow {tf.__version__}, numpy {np.__version__}",
            script=script,
        )
        with replacing(path) as partial:
            table.round(6).to_csv(partial, index=False)
        accuracy = f"dense accuracy {rows[0]['test_accuracy']:.4f}"
        seconds = time.monotonic() - began
        tqdm.write(f"{dataset.name}, seed {seed}: {accuracy}, {seconds:.0f} s on the {device}")


def report(name, rows, folder):
    """Print the mean accuracies after most repairs, and where the rest is."""
    for repair in ordered(set(rows["repair"]) - {"no_bias", "refit_output"}):
        state = rows[rows["repair"] == repair]
        accuracies = state.pivot_table("test_accuracy", ["method", "seed"], "sparsity")
        means = accuracies.groupby("method").agg(lambda values: values.mean(skipna=False))
        means.insert(0, "n", accuracies.groupby("method").size())
        means = means.reindex(["dense", *ordered(state["method"])])
        text = means.to_string(float_format="{:.3f}".format, na_rep="")
        print(f"\n{name}, {style_of(repair)['label']}: mean test accuracy of all n seeds\n{text}")
    print(f"\nsaved in {folder / name}.csv, drawn in {folder / name}-*.png")


def main(arguments=None):
    """Run the experiment, then save and report all that is in the output folder."""
    options = parse_options(arguments)
    try:
        if not options.draw:
            run(options)
        for name, rows in collect(options.output_dir).groupby("dataset", sort=False):
            save_results(name, rows, options.output_dir)
            report(name, rows, options.output_dir)
    except (UserError, OSError) as error:
        sys.exit(f"network_pruning.py: error: {error}")


if __name__ == "__main__":
    if not hasattr(sys, "ps1"):  # as in IPython, whose %run shares the process with the notebook
        # Ctrl-C ends the process at once; as a KeyboardInterrupt it would wait for TensorFlow
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()

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

Trains dense ReLU networks, prunes them by several methods, repairs what is left, and plots the test
accuracy. `python network_pruning.py` fills plots/ with figures, tables and networks; see --help.

In the order of the experiment: network and training, pruning, methods and repairs, experiment; then
data, results, figures, command line. To import: `prune_weights`, `prune_neurons`, `compact` and
`refit`, NumPy in and NumPy out.
"""

import argparse
import ast
import functools
import gzip
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

# read before the slow imports: an edit made during them is not the code that runs
SCRIPT = Path(__file__).read_text(encoding="utf-8-sig")

# TensorFlow and Keras read these as they are imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # only fatal messages
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # fast matrix products on any CPU
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")  # each product needs the last one
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # other jobs may need the GPU, too
os.environ["KERAS_BACKEND"] = "tensorflow"  # regardless of the user's settings

import keras
import matplotlib.style
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from sklearn.datasets import load_digits
from tqdm import tqdm

progress = functools.partial(tqdm, leave=False, disable=None)  # silent without a terminal


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong."""


# ----------------------------------------------------------------------- network and training


def configure_tensorflow():
    """Make TensorFlow deterministic, in full float32; say if it does not see a GPU."""
    tf.get_logger().setLevel("ERROR")  # it warns where each training traces a function of its own
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(0)  # or a notebook's unseeded random operations would fail from now on
    # TensorFloat-32 would round the factors of products to 10 bits
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if device_name() == "CPU" and shutil.which("nvidia-smi"):
        advice = "pip install 'tensorflow[and-cuda]'"
        tqdm.write(f"TensorFlow does not see the GPU: {advice}", sys.stderr)


def device_name():
    """Return the name of the device that TensorFlow computes on."""
    for gpu in tf.config.list_physical_devices("GPU"):
        return f"GPU, {tf.config.experimental.get_device_details(gpu).get('device_name')}"
    return "CPU"


class Dataset(NamedTuple):
    """A data set, scaled; images and training targets are tensors on the device."""

    name: str
    train_images: tf.Tensor  # [n, pixels], divided by the brightest training pixel
    train_targets: tf.Tensor  # [n, classes], one-hot
    test_images: tf.Tensor  # like train_images
    test_labels: np.ndarray  # [n], from 0


class Network(NamedTuple):
    """A dense network: ReLU in the hidden layers, logits from the output layer.

    Hidden layers have no bias, so a unit without incoming weights outputs 0 and can be deleted.
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
    """Make a network from kernels, first to last, and a bias."""
    *hidden, output, bias = arrays
    return Network(tuple(hidden), output, bias)


def new_network(sizes, rng):
    """Make an untrained network: Glorot-uniform kernels (Glorot and Bengio 2010), a bias of 0."""
    arrays = []
    for fan_in, units in itertools.pairwise(sizes):
        limit = math.sqrt(6 / (fan_in + units))
        arrays.append(rng.uniform(-limit, limit, (fan_in, units)).astype(np.float32))
    return network_of([*arrays, np.zeros(sizes[-1], np.float32)])


def layer_inputs(hidden, images):
    """Return what each layer receives: images [n, pixels], then each hidden layer's output."""
    inputs = [images]
    for kernel in hidden:
        inputs.append(tf.nn.relu(tf.matmul(inputs[-1], kernel)))
    return inputs


def train(network, dataset, epochs, options, rng):
    """Return a network trained further by Adam on softmax cross-entropy; zero weights stay zero.

    Adam (Kingma and Ba 2015) starts anew. rng shuffles the images anew for each epoch.
    options: see `parse_options`. Raises UserError if training diverges.
    """
    variables = [tf.Variable(array) for array in (*network.kernels, network.bias)]
    trained = network_of(variables)
    masks = {i: tf.cast(k != 0, tf.float32) for i, k in enumerate(network.kernels) if not k.all()}
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
                outputs = layer_inputs(trained.hidden, images)[-1] @ trained.output + trained.bias
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


def rng_for(seed, purpose):
    """Make a generator for one purpose, so that draws for others do not affect it."""
    return np.random.default_rng([seed, *purpose.encode()])


def train_dense(dataset, seed, options):
    """Train the dense network of a seed."""
    pixels, classes = dataset.train_images.shape[1], dataset.train_targets.shape[1]
    untrained = new_network((pixels, *options.hidden_units, classes), rng_for(seed, "new dense"))
    return train(untrained, dataset, options.epochs, options, rng_for(seed, "train dense"))


# ------------------------------------------------------------------------------------ pruning


def prune_weights(kernel, sparsity):
    """Return a copy of a kernel with its weights of smallest magnitude set to 0.

    kernel: floats, of any shape. sparsity: a fraction in [0, 1]. Raises ValueError for another
    sparsity, or a weight that is NaN. Source: Han et al. 2015, "Learning both Weights and
    Connections for Efficient Neural Networks".
    """
    return zero_lowest(kernel, np.abs(kernel), sparsity)


def prune_neurons(kernel, sparsity):
    """Return a copy of a kernel with its units of smallest L2 norm (of incoming weights) set to 0.

    kernel: floats, [..., units]. sparsity, errors: as for `prune_weights`. A removed unit's bias
    would still act: set it to 0 as well. Source: Li et al. 2017, "Pruning Filters for Efficient
    ConvNets", there with the L1 norm.
    """
    incoming = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    return zero_lowest(kernel, np.linalg.norm(incoming, axis=0), sparsity)


def zero_lowest(kernel, scores, sparsity):
    """Return a copy of a kernel with its weights or units of the lowest scores set to 0.

    scores: [units], or of the weights, in the kernel's shape. Of equal ones the first in C order
    go, so a higher sparsity removes a superset of what a lower one removes.
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
    Without any path, unit 0 of each hidden layer is kept: frameworks need at least one unit.
    kernels: [fan_in, units] each, first to output.
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

    kernels: as for `live_units`. Units that are not live are deleted with their columns and rows;
    inputs and outputs stay. That is exact for ReLU layers without bias, where a unit without
    incoming weights outputs 0, and stays so in training if zero weights stay zero. If no path is
    left, all weights are 0.
    """
    units = live_units(kernels)
    small = [kernel[np.ix_(*ends)] for kernel, ends in zip(kernels, itertools.pairwise(units))]
    connected = all(kernel.any() for kernel in small)
    return small if connected else [np.zeros_like(kernel) for kernel in small]


def refit(kernel, inputs, targets, steps=10, ridge=0.01):
    """Return a copy of a pruned kernel, its nonzero weights refit to come close to the targets.

    Minimizes the squared error of inputs @ kernel, with a ridge on the change of the weights, by
    conjugate gradients on the scaled normal equations, for all units at once. Zeros stay zero.

    kernel: [fan_in, units]. inputs: [n, fan_in], what the layer receives in the pruned network.
    targets: [n, units], what it computes in the dense network, before bias and activation. ridge:
    above 0, relative to the mean square of the inputs that are not always 0. Steps and ridge were
    chosen on 10,000 held-out training images: 40 steps gain at most 1.1 points of accuracy. Raises
    ValueError if the result is not finite. Sources: Castellano, Fanelli and Pelillo 1997, "An
    Iterative Pruning Algorithm for Feedforward Neural Networks"; Meng et al. 2024, "ALPS".
    """
    dtype = np.result_type(kernel, inputs, targets, np.float32)  # squares of bytes would overflow
    kernel, inputs, targets = (array.astype(dtype) for array in (kernel, inputs, targets))
    gram = inputs.T @ inputs
    squares = gram.diagonal()
    penalty = ridge * squares.sum() / max(np.count_nonzero(squares), 1) + np.finfo(dtype).tiny
    gram += penalty * np.eye(len(gram), dtype=dtype)
    scale = 1 / np.sqrt(gram.diagonal())[:, np.newaxis]
    right = scale * (inputs.T @ (targets - inputs @ kernel))
    change = scale * conjugate_gradients(scale * gram * scale.T, right, kernel != 0, steps)
    if not np.isfinite(change).all():
        raise ValueError("kernel, inputs and targets must be finite and of moderate size")
    return kernel + change


def refit_layers(kernels, images, targets, steps=10):
    """Refit kernels layer by layer, each on the outputs of the layers refit before it."""
    inputs = images
    fitted = []
    for kernel, layer_targets in zip(kernels, targets):
        fitted.append(refit(kernel, inputs, layer_targets, steps))
        inputs = np.maximum(inputs @ fitted[-1], 0)
    return fitted


def conjugate_gradients(matrix, right, kept, steps):
    """Solve matrix @ x = right for each column of x, which is 0 where `kept` is False.

    matrix: [n, n], symmetric, positive definite up to rounding. right, kept: [n, columns].
    """
    dot = functools.partial(np.einsum, "ij,ij->j")  # of each column
    epsilon = np.finfo(matrix.dtype).eps
    x = np.zeros_like(right)
    residual = direction = kept * right
    square = dot(residual, residual)
    negligible = epsilon**2 * square
    for _ in range(steps):
        curved = kept * (matrix @ direction)
        curvature = dot(direction, curved)
        # a quotient of rounding errors would be a random step
        going = (square > negligible) & (curvature > epsilon * dot(direction, direction))
        step = np.divide(square, curvature, out=np.zeros_like(square), where=going)
        x += step * direction
        residual = residual - step * curved
        previous, square = square, dot(residual, residual)
        direction = residual + square / np.where(previous > 0, previous, 1) * direction
    return x


# ------------------------------------------------------------------------ methods and repairs
# To add one, write a function and enter it in METHODS or REPAIRS; STYLES names and colours it.
# A method takes the dense network, what each of its layers receives for the images to refit on, the
# sparsities in ascending order and a random generator, and yields hidden kernels for each sparsity.


def dense(network, inputs, sparsities, rng):
    """Remove nothing."""
    for _ in sparsities:
        yield network.hidden


def weight(network, inputs, sparsities, rng):
    """Remove the weights of smallest magnitude."""
    for sparsity in sparsities:
        yield [prune_weights(kernel, sparsity) for kernel in network.hidden]


def neuron(network, inputs, sparsities, rng):
    """Remove the neurons of smallest L2 norm."""
    for sparsity in sparsities:
        yield [prune_neurons(kernel, sparsity) for kernel in network.hidden]


def matched_weight(network, inputs, sparsities, rng):
    """Remove each layer's smallest weights, keeping as many as `neuron` leaves live."""
    for hidden in neuron(network, inputs, sparsities, rng):
        live = compact([*hidden, network.output])
        gone = [1 - np.count_nonzero(a) / kernel.size for a, kernel in zip(live, network.hidden)]
        yield [prune_weights(kernel, share) for kernel, share in zip(network.hidden, gone)]


def random_weight(network, inputs, sparsities, rng):
    """Remove weights at random."""
    return cut(network.hidden, [rng.random(kernel.shape) for kernel in network.hidden], sparsities)


def random_neuron(network, inputs, sparsities, rng):
    """Remove neurons at random."""
    return cut(network.hidden, [rng.random(len(kernel.T)) for kernel in network.hidden], sparsities)


def saliency_weight(network, inputs, sparsities, rng):
    """Remove the weights of smallest saliency."""
    return cut(network.hidden, saliencies(network, inputs), sparsities)


def saliency_neuron(network, inputs, sparsities, rng):
    """Remove the neurons of smallest saliency: norm of the output times sensitivity."""
    norms = [np.linalg.norm(received, axis=0) for received in inputs[1:]]
    pairs = zip(norms, sensitivities(network, inputs))
    return cut(network.hidden, [norm * response for norm, response in pairs], sparsities)


def gradual_weight(network, inputs, sparsities, rng):
    """Remove weights of smallest saliency over all layers, in rounds with refits between them.

    A round removes a fifth (Frankle and Carbin 2019, "The Lottery Ticket Hypothesis"). What is
    yielded for a sparsity has been cut once more since the last refit.
    """
    images = inputs[0]
    targets = [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, network.hidden)]
    share = 1.0  # of the weights that is left
    for sparsity in sparsities:
        while 0.8 * share > 1 - sparsity > 0:
            share *= 0.8
            hidden = prune_together(network.hidden, saliencies(network, inputs), 1 - share)
            fitted = refit_layers(hidden, images, targets, steps=5)  # later rounds go on
            network = network._replace(hidden=tuple(fitted))
            inputs = layer_inputs(network.hidden, images)
        yield prune_together(network.hidden, saliencies(network, inputs), sparsity)


METHODS = {
    "dense": dense,
    "weight": weight,
    "neuron": neuron,
    "matched_weight": matched_weight,
    "saliency_weight": saliency_weight,
    "saliency_neuron": saliency_neuron,
    "gradual_weight": gradual_weight,
    "random_weight": random_weight,
    "random_neuron": random_neuron,
}


def cut(kernels, scores, sparsities):
    """For each sparsity, yield kernels with the lowest scores of each set to 0."""
    for sparsity in sparsities:
        yield [zero_lowest(kernel, score, sparsity) for kernel, score in zip(kernels, scores)]


def prune_together(kernels, scores, sparsity):
    """Return copies of kernels without the weights of lowest scores of all of them together."""
    ranked = np.concatenate([score.ravel() for score in scores])
    weights = np.concatenate([kernel.ravel() for kernel in kernels])
    # removed weights rank lowest, with distinct scores: np.partition is slow on ties
    gone = np.arange(-weights.size, 0, dtype=np.float32)
    left = zero_lowest(weights, np.where(weights == 0, gone, ranked), sparsity)
    layers = np.split(left, np.cumsum([kernel.size for kernel in kernels])[:-1])
    return [layer.reshape(kernel.shape) for layer, kernel in zip(layers, kernels)]


def saliencies(network, inputs):
    """Return the saliency of each hidden weight: about how much the logits change without it.

    Its magnitude times the L2 norm of its input times the sensitivity of its unit: the root of the
    saliency of Optimal Brain Damage (LeCun et al. 1990) for the squared error of the logits, with
    Gauss-Newton second derivatives factored as in K-FAC (Martens and Grosse 2015).
    """
    norms = [np.linalg.norm(received, axis=0)[:, np.newaxis] for received in inputs]
    factors = zip(network.hidden, norms, sensitivities(network, inputs))
    return [abs(kernel) * norm * response for kernel, norm, response in factors]


def sensitivities(network, inputs):
    """Return, for each hidden layer, how much the logits respond to each unit: [units].

    The L2 norm, over all images, of the derivative of a randomly signed sum of the logits. Its
    square is on average the sum of the squares of all logits' derivatives (Hutchinson 1990).
    """
    signs = np.random.default_rng(0).choice([-1, 1], (len(inputs[0]), len(network.bias)))
    gradient = tf.constant(signs, tf.float32)
    norms = []
    for kernel, received in zip(reversed(network.kernels[1:]), reversed(inputs[1:])):
        active = tf.cast(received > 0, tf.float32)
        gradient = active * tf.matmul(gradient, kernel, transpose_b=True)
        norms.insert(0, tf.norm(gradient, axis=0).numpy())
    return norms


# A repair takes the live part of a pruned network, the images to refit on, and for each layer what
# it computes in the dense network before bias and activation, [n, units]. It returns a network.
# Retraining is measured like a repair, but needs the whole data set.


def none(network, images, targets):
    """Leave a network as its method made it."""
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


def prune_and_repair(trained, dataset, seed, method, options):
    """Yield method, sparsity, repair and network, for each network that a method gives."""
    order = rng_for(seed, "refit images").permutation(len(dataset.train_images))
    images = tf.gather(dataset.train_images, order[: options.refit_images]).numpy()
    # what each layer of the dense network receives and computes, before bias and activation
    inputs = [np.asarray(received) for received in layer_inputs(trained.hidden, images)]
    computed = [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, trained.kernels)]
    for array in (*trained.kernels, trained.bias, *inputs, *computed):
        array.flags.writeable = False  # a method that works in place would change what others get
    sparsities = [0.0] if method == "dense" else options.sparsities
    pruned_layers = METHODS[method](trained, inputs, sparsities, rng_for(seed, f"prune {method}"))
    bar = progress(sparsities, desc=method, unit="level")
    for sparsity, hidden in zip(bar, pruned_layers, strict=True):
        kernels = [np.asarray(kernel, np.float32) for kernel in (*hidden, trained.output)]
        pruned = network_of([*compact(kernels), trained.bias])
        targets = [layer[:, live] for layer, live in zip(computed, live_units(kernels)[1:])]
        for array in (*pruned.kernels, *targets):
            array.flags.writeable = False
        for repair, function in REPAIRS.items():
            yield method, sparsity, repair, function(pruned, images, targets)
        if options.retrain_epochs:
            rng = rng_for(seed, f"train {method} {sparsity}")
            retrained = train(pruned, dataset, options.retrain_epochs, options, rng)
            yield method, sparsity, "retrain", retrained
        if options.retrain_epochs and method == "neuron":
            # a control: a new network of the same size, trained for as many epochs
            untrained = new_network(pruned.sizes, rng_for(seed, f"new scratch {sparsity}"))
            rng = rng_for(seed, f"train scratch {sparsity}")
            epochs = options.epochs + options.retrain_epochs
            yield "scratch", sparsity, "retrain", train(untrained, dataset, epochs, options, rng)


def evaluate(logits, labels):
    """Return accuracy in [0, 1] and mean cross-entropy in nats of logits [n, classes]."""
    logits = logits.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return {"test_accuracy": np.mean(logits.argmax(axis=1) == labels), "test_loss": losses.mean()}


def time_passes(layer_sizes, images):
    """Time a pass over images by random networks of the given layer sizes; return {sizes: seconds}.

    Interleaves the networks, so that changes in the machine's speed affect all alike; takes minima.
    """
    kernel = functools.partial(tf.random.stateless_normal, seed=(0, 0))  # of a shape
    networks = {sizes: [*map(kernel, itertools.pairwise(sizes))] for sizes in layer_sizes}
    seconds = dict.fromkeys(networks, math.inf)
    deadline = time.monotonic() + 0.2  # seconds: small networks need more rounds
    rounds = 0
    while rounds < 3 or time.monotonic() < deadline:
        rounds += 1
        for sizes, kernels in networks.items():
            began = time.perf_counter()
            layer_inputs(kernels, images)[-1].numpy()  # waits for a GPU
            seconds[sizes] = min(seconds[sizes], time.perf_counter() - began)
    return seconds


def measure(trained, dataset, seed, method, options):
    """Return the rows of a method: how each network was made, and how good and fast it is."""
    weights = sum(kernel.size for kernel in trained.hidden)  # the output layer is never pruned
    rows = []
    hidden = None
    networks = prune_and_repair(trained, dataset, seed, method, options)
    for kind, sparsity, repair, network in networks:
        if network.hidden is not hidden:  # most repairs leave the hidden layers: one pass for all
            hidden = network.hidden
            received = layer_inputs(hidden, dataset.test_images)[-1]
        logits = (received @ network.output + network.bias).numpy()
        if not np.isfinite(logits).all():
            raise UserError(f"{method} at {sparsity:g}, {repair}: the logits are not finite")
        quality = evaluate(logits, dataset.test_labels)
        made = dict(dataset=dataset.name, seed=seed, method=kind, sparsity=sparsity, repair=repair)
        live = sum(map(np.count_nonzero, hidden)) / weights
        rows.append({**made, **quality, "live_fraction": live, "layer_sizes": network.sizes})
        if options.save_models:
            name = f"{dataset.name}-seed{seed}-{kind}-{sparsity:g}-{repair}.keras"
            save(options.output_dir / "networks" / name, keras_model(network).save)
    layer_sizes = [trained.sizes, *(row["layer_sizes"] for row in rows)]
    # with fewer images, overhead would dominate the time of small networks
    seconds = time_passes(layer_sizes, dataset.test_images[:1500])
    for row in rows:
        row["speedup"] = seconds[trained.sizes] / seconds[row["layer_sizes"]]
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
    """Load the named data sets, or those of TITLES; if none can be downloaded, the digits."""
    if names or data_dir:
        return [load_dataset(name, data_dir) for name in names or TITLES]
    datasets = []
    for name in TITLES:
        try:
            datasets.append(load_dataset(name))
        except UserError as error:
            tqdm.write(str(error), sys.stderr)
    if not datasets:
        tqdm.write("Using scikit-learn's digits instead, 1,437 images.", sys.stderr)
    return datasets or [load_dataset("digits")]


def load_dataset(name, data_dir=None):
    """Load one data set, check it and scale its images."""
    arrays = read_arrays(name, data_dir)
    train_images, train_labels, test_images, test_labels = arrays
    consistent = train_images.shape[1:] == test_images.shape[1:]
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        consistent &= labels.shape == images.shape[:1] != (0,)
    if not consistent:
        shapes = ", ".join(f"{part} {array.shape}" for part, array in zip(PARTS, arrays))
        raise UserError(f"{name}: these do not fit each other: {shapes}")
    labels = np.concatenate([train_labels, test_labels])
    lowest = labels.min()  # the letters of EMNIST begin at 1
    classes = 1 + int(labels.max() - lowest)
    if classes == 1:
        raise UserError(f"{name}: all labels are {lowest}; a classifier needs two classes")
    brightest = float(train_images.max())
    return Dataset(
        name=os.path.basename(os.path.abspath(data_dir / name if data_dir else name)),
        train_images=tf.cast(train_images.reshape(len(train_images), -1), tf.float32) / brightest,
        train_targets=tf.one_hot(train_labels - lowest, classes),
        test_images=tf.cast(test_images.reshape(len(test_images), -1), tf.float32) / brightest,
        test_labels=test_labels - lowest,
    )


def read_arrays(name, data_dir):
    """Return images [n, ...] and labels [n] of training, then those of the test set."""
    if data_dir and (data_dir / name).is_dir():
        return [read_idx(data_dir / name, part) for part in PARTS]
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
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
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    found = [path for path in files if re.search(PARTS[part], path.name.lower())]
    if len({str(path).removesuffix(".gz") for path in found}) != 1:  # torchvision leaves both
        names = ", ".join(str(path.relative_to(folder)) for path in found or files) or "no file"
        raise UserError(f"{folder} must have one IDX file of {part}, but has {names:.200}")
    try:
        content = found[0].read_bytes()
        if content.startswith(b"\x1f\x8b"):  # gzip, whatever its name says
            content = gzip.decompress(content)
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin with 0, 0, 8")
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * shape.size).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise UserError(f"{found[0]} is not a whole IDX file of bytes: {error}") from error


# ------------------------------------------------------------------------------------ results
# What takes long is done once: trained networks and the rows of each method are kept in files whose
# names have a checksum of what made them: data, options, code, TensorFlow and NumPy. The device is
# not part of it, so results from many machines can be drawn together.

# options that decide no number of a row; add one of your own that decides none
CHOICES = {"datasets", "data_dir", "output_dir", "seeds", "methods", "save_models"}
VERSIONS = f"tensorflow {tf.__version__}, numpy {np.__version__}"


def run(dataset, options):
    """Return the rows of a data set for all seeds and methods."""
    data = fingerprint(*dataset[1:])
    tables = []
    for seed in progress(options.seeds, unit="seed"):
        began = time.monotonic()
        trained = dense_network(dataset, data, seed, options)
        for method in options.methods:
            tables.append(results_of(trained, dataset, data, seed, method, options))
        done = f"{time.monotonic() - began:.0f} s on the {device_name()}"
        tqdm.write(f"{dataset.name}, seed {seed}: {done}", sys.stderr)
    rows = pd.concat(tables, ignore_index=True)
    same = rows.groupby(["device", "layer_sizes"])  # networks of the same sizes are equally fast
    return rows.assign(speedup=same["speedup"].transform("median").round(6))


def dense_network(dataset, data, seed, options):
    """Return the trained dense network of a seed, from its file if there is one; data: checksum."""
    now = definitions() | {name: AS_WRITTEN[name] for name in ("METHODS", "REPAIRS")}
    if not AS_WRITTEN.items() <= now.items():
        return train_dense(dataset, seed, options)  # by code that is not in the file
    unused = CHOICES | {"sparsities", "refit_images", "retrain_epochs"}
    recipe = {name: value for name, value in vars(options).items() if name not in unused}
    made_by = fingerprint(TRAINING, recipe, data)
    path = options.output_dir / "networks" / f"{dataset.name}-seed{seed}-{made_by}.keras"
    if not path.exists():
        save(path, keras_model(train_dense(dataset, seed, options)).save)
    try:
        trained = network_of(keras.models.load_model(path).get_weights())
        if trained.sizes[1:-1] != tuple(options.hidden_units):
            raise ValueError(f"it has layers of {trained.sizes} units")
        return trained
    except Exception as error:  # Keras raises many kinds
        raise UserError(f"{path} is not the trained network: {error!r}; remove it") from error


def results_of(trained, dataset, data, seed, method, options):
    """Return the rows of a method, from their file if there is one; data: checksum."""
    recipe = {name: value for name, value in vars(options).items() if name not in CHOICES}
    made_by = fingerprint(CODE, recipe, data, *trained.kernels, trained.bias)
    path = options.output_dir / "runs" / f"{dataset.name}-seed{seed}-{method}-{made_by}.csv"
    functions = [METHODS[method], *REPAIRS.values()]
    # functions of other files may change at any time
    own = all(getattr(f, "func", f).__module__ == run.__module__ for f in functions)
    known = own and AS_WRITTEN.items() <= definitions().items()
    if options.save_models or not (known and path.exists()):
        rows = pd.DataFrame(measure(trained, dataset, seed, method, options)).round(6)
        recipe["refit_images"] = min(options.refit_images, len(dataset.train_images))
        recipe |= {"device": device_name(), "versions": VERSIONS, "made_by": made_by}
        del recipe["sparsities"]
        rows = rows.assign(**{name: str(value) for name, value in recipe.items()})
        if not known:
            tqdm.write(f"{method}: measured by code that is not in the file; not kept", sys.stderr)
            return rows.assign(made_by="other code")
        save(path, lambda partial: rows.to_csv(partial, index=False))
    # a data set may be called NA or 007, and a checksum may look like 1e100
    return pd.read_csv(path, dtype={"dataset": str, "made_by": str}, keep_default_na=False)


def save(path, write):
    """Write a file atomically: call write(temporary path), then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def keras_model(network):
    """Build a keras.Sequential of a network: images [n, pixels] in [0, 1] to logits."""
    pixels, *hidden, classes = network.sizes
    layer = functools.partial(keras.layers.Dense, dtype="float32")  # whatever keras.json says
    layers = [layer(units, "relu", use_bias=False) for units in hidden]
    model = keras.Sequential([keras.Input([pixels]), *layers, layer(classes)])
    model.set_weights([*network.kernels, network.bias])
    return model


def fingerprint(*values):
    """Return a checksum of values, arrays or others, as eight hexadecimal digits."""
    values = [zlib.crc32(np.ascontiguousarray(v)) if hasattr(v, "dtype") else v for v in values]
    return f"{zlib.crc32(repr([VERSIONS, *values]).encode()):08x}"


def code_without(*sections):
    """Return a checksum of the script without sections, imports, comments and docstrings."""
    header, *rest = re.split("^# -{9,} (.+)\n", SCRIPT, flags=re.MULTILINE)
    counted = [text for title, text in zip(rest[::2], rest[1::2]) if title not in sections]
    tree = ast.parse("".join([header, *counted]))
    tree.body = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return fingerprint(ast.unparse(tree))


def definitions():
    """Return the script's globals, functions as code objects: IPython's autoreload swaps these."""
    return {
        name: {**value} if isinstance(value, dict) else getattr(value, "__code__", value)
        for name, value in globals().items()
        if not name.startswith("__")
    }


CODE = code_without("figures")
TRAINING = code_without("pruning", "methods and repairs", "experiment", "figures", "command line")
AS_WRITTEN = definitions()

# ------------------------------------------------------------------------------------ figures

STYLES = {  # of methods and repairs, as for Axes.plot, in the order of the legends
    "weight": dict(label="weights, by magnitude", color="#00508f", marker="o"),
    "neuron": dict(label="neurons, by L2 norm", color="#e07b00", marker="s", ls="--"),
    "matched_weight": dict(label="weights, matched to neurons", color="#45a5e0", marker="^"),
    "saliency_weight": dict(label="weights, by saliency", color="#c03030", marker="P", ls="-."),
    "saliency_neuron": dict(label="neurons, by saliency", color="#9040b0", marker="d", ls="--"),
    "gradual_weight": dict(label="weights, gradual: refit in rounds", color="teal", marker="X"),
    "random_weight": dict(label="random weights", color="#707070", marker="o", ls=":", lw=1),
    "random_neuron": dict(label="random neurons", color="#a0a0a0", marker="s", ls=":", lw=1),
    "scratch": dict(label="small networks from scratch", color="#2a8000", marker="v", ls="-."),
    # repairs: the stronger, the darker
    "none": dict(label="as pruned", color="#f0a030", marker="o"),
    "no_bias": dict(label="without the output bias", color="#e06040", marker="^", ls=":"),
    "refit_output": dict(label="output layer refit", color="#b04080", marker="D", ls="-."),
    "refit": dict(label="refit", color="#5050b0", marker="s", ls="--"),
    "retrain": dict(label="retrained", color="#101040", marker="v"),
}
TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)  # sparsities and accuracies


def style_of(name):
    """Return how to draw a method or repair; without a style, in Matplotlib's next colour."""
    return STYLES.get(name, dict(label=name, marker="x"))


def draw_panel(ax, rows, by, x="kept", y="error"):
    """Draw y against x for each value of column `by`, dense first: mean, deviation and seeds.

    Sparsity and accuracy are drawn on a log scale of what is missing to 1, where 0.99 is as far
    from 0.98 as 0.9 from 0.8.
    """
    for name in rows.loc[rows["sparsity"] > 0, by].unique():
        curve = rows[rows[by].isin([name, "dense"])]
        levels = curve.groupby("sparsity")
        mean = levels[[x, y]].mean()
        deviation = levels[y].std().fillna(0)  # of a single seed
        low = (mean[y] - deviation).clip(lower=curve[y].min())
        [line] = ax.plot(mean[x], mean[y], ms=4, **style_of(name))
        pale = dict(color=line.get_color(), alpha=0.2)
        ax.fill_between(mean[x], low, mean[y] + deviation, lw=0, **pale)
        for _, single in curve.groupby("seed"):
            ax.plot(single[x], single[y], lw=0.5, **pale)
    ax.set(xscale="log", yscale="log", xlabel="sparsity", ylabel="test accuracy")
    for axis, column in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
        if column in ("kept", "error"):
            axis.set_major_locator(FixedLocator([1 - tick for tick in TICKS]))
            axis.set_major_formatter(lambda missing, _: f"{1 - missing:g}")
            axis.set_inverted(True)
    ax.xaxis.set_inverted(True)  # the sparser, the further right
    ax.grid(color="#dddddd", lw=0.6)


def draw_accuracy(figure, rows):
    """Draw accuracy against sparsity, as pruned and refit."""
    figure.set_size_inches(5.4, 6.8)
    best = rows.query("method == 'dense' and repair == 'none'")["test_accuracy"].mean()
    chance = 1 / int(rows["layer_sizes"].iloc[0].split("-")[-1])  # one in as many as classes
    for ax, repair in zip(figure.subplots(2, sharex=True, sharey=True), ("none", "refit")):
        draw_panel(ax, rows[rows["repair"] == repair], "method")
        ax.axhline(1 - best, color="black", lw=0.8, label=f"dense network: {best:.3f}")
        ax.axhline(1 - chance, color="black", lw=0.8, ls=":", label=f"chance: {chance:.3f}")
        ax.set_title(style_of(repair)["label"])
        ax.label_outer()


def draw_repairs(figure, rows):
    """Draw accuracy after each repair against live weights: a panel for the first two methods."""
    figure.set_size_inches(7.2, 4.6)
    methods = [name for name in rows["method"].unique() if name not in ("dense", "scratch")][:2]
    axes = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for ax, method in zip(axes, methods):
        draw_panel(ax, rows[rows["method"].isin(["dense", method])], "repair", "live_fraction")
        ax.set(title=style_of(method)["label"], xlabel="share of weights still connected (live)")
        ax.label_outer()


def draw_methods(figure, rows):
    """Draw accuracy against sparsity of every method, a panel for each repair; the speed-up."""
    repairs = rows["repair"].unique()
    columns = math.ceil((len(repairs) + 1) / 2)
    figure.set_size_inches(3.6 * columns, 7.4)
    for place, repair in enumerate(repairs, start=1):
        first = figure.axes[0] if figure.axes else None
        ax = figure.add_subplot(2, columns, place, sharey=first, title=style_of(repair)["label"])
        draw_panel(ax, rows[rows["repair"] == repair], "method")
    speed = figure.add_subplot(2, columns, len(repairs) + 1, title="speed")
    draw_panel(speed, rows[rows["repair"] == "none"], "method", y="speedup")
    speed.set_ylabel("speed-up over dense")
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


FIGURES = {  # by the end of the file's name: the title, and the function that draws it
    "accuracy": ("accuracy after pruning", draw_accuracy),
    "repairs": ("what each repair gives back", draw_repairs),
    "methods": ("what pruning breaks, and what repairs it", draw_methods),
}


def add_texts(figure, title, rows):
    """Add a title, one legend of all panels, and in small print what was run."""
    lines = [line for ax in figure.axes for line in ax.get_legend_handles_labels()[0]]
    figure.legend(
        handles=list({line.get_label(): line for line in lines}.values()),
        title=title,
        title_fontsize="large",
        ncols=int(figure.get_figwidth() / 2.3),
        loc="outside upper center",
        frameon=False,
    )
    text = "Log scales of 1 - accuracy and share left. Line: mean; band: SD; pale: single networks"
    columns = ("hidden_units", "epochs", "batch_size", "learning_rate", "refit_images")
    for column in (*columns, "retrain_epochs", "seed", "device", "versions"):
        values = " and ".join(dict.fromkeys(map(str, rows[column])))
        text += f"; {column.replace('_', ' ')}: {values}"
    width = round(17 * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, width), fontsize=7, color="#444444")


def save_results(name, rows, folder):
    """Write the table and the figures of a data set, whatever the user's settings of Matplotlib."""
    save(folder / f"{name}.csv", lambda partial: rows.to_csv(partial, index=False))
    # points where every network is empty are not drawn: 0 has no place on a log scale
    live = rows.groupby(["method", "sparsity"])["live_fraction"].transform("max") > 0
    drawn = rows.assign(kept=1 - rows["sparsity"], error=(1 - rows["test_accuracy"]).clip(0.001))
    drawn.loc[~live, ["kept", "live_fraction"]] = np.nan
    with matplotlib.style.context(["default", {"text.parse_math": False}]):  # names may have a $
        for kind, (title, draw) in FIGURES.items():
            figure = Figure(dpi=160, layout="constrained")
            draw(figure, drawn)
            add_texts(figure, f"{TITLES.get(name, name)}: {title}", rows)
            save(folder / f"{name}-{kind}.png", figure.savefig)


# ------------------------------------------------------------------------------- command line


def parse_options(arguments=None):
    """Parse the command line; the defaults are the recipe of the original experiment."""
    parser = argparse.ArgumentParser(
        description="Accuracy against sparsity of pruned networks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    methods = [name for name in METHODS if name != "dense"]
    usual = [name for name in methods if name != "matched_weight"]
    sparsities = [0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99]
    add("--datasets", nargs="+", help="mnist, fashion_mnist, digits, folders in --data-dir")
    add("--data-dir", type=Path, help="folder with a folder of IDX files for each data set")
    add("--output-dir", type=Path, default=Path("plots"), help="folder to write to")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one network each")
    add("--methods", nargs="+", choices=methods, default=usual, help="what to prune, and how")
    add("--sparsities", nargs="+", type=float, default=sparsities, help="fractions to remove")
    add("--hidden-units", nargs="+", type=int, default=[1000, 1000, 500, 200], help="hidden layers")
    add("--epochs", type=int, default=10, help="epochs of training")
    add("--batch-size", type=int, default=128, help="images per step of training")
    add("--learning-rate", type=float, default=1e-3, help="learning rate of Adam")
    add("--refit-images", type=int, default=1000, help="training images to refit on")
    add("--retrain-epochs", type=int, default=0, help="epochs of training after pruning")
    add("--save-models", action="store_true", help="save all networks for Keras (10 MB each)")
    options = parser.parse_args(arguments)
    options.seeds = sorted(set(options.seeds))
    # in the order of METHODS, always with the dense network
    options.methods = [name for name in METHODS if name in ("dense", *options.methods)]
    options.sparsities = sorted({round(sparsity, 6) for sparsity in options.sparsities})
    if not all(0 < sparsity <= 1 for sparsity in options.sparsities):
        parser.error("--sparsities must be above 0, up to 1; dense networks are always measured")
    counts = [*options.hidden_units, options.epochs, options.batch_size, options.refit_images]
    if min(counts) < 1 or min(*options.seeds, options.retrain_epochs) < 0:
        parser.error("numbers must be above 0; --seeds and --retrain-epochs may be 0")
    return options


def report(name, rows, folder):
    """Print the mean accuracies after the main repairs, and where the rest is."""
    shown = rows[rows["repair"].isin(["none", "refit", "retrain"])]
    means = shown.pivot_table("test_accuracy", ["method", "repair"], "sparsity", sort=False)
    print(f"\n{name}: mean test accuracy")
    print(means.to_string(float_format="{:.3f}".format, na_rep=""))
    print(f"\nsaved in {folder / name}.csv, drawn in {folder / name}-*.png", flush=True)


def main(arguments=None):
    """Run the experiment; save, draw and report the results of each data set."""
    options = parse_options(arguments)
    try:
        configure_tensorflow()
        datasets = load_datasets(options.datasets, options.data_dir)
        if len({dataset.name for dataset in datasets}) < len(datasets):
            raise UserError("two data sets have one name: name each once, or rename a folder")
        options.output_dir.mkdir(parents=True, exist_ok=True)
        if __name__ == "__main__" and not hasattr(sys, "ps1"):
            # Ctrl-C ends the process; a KeyboardInterrupt would wait for TensorFlow. Not in
            # IPython, whose %run shares the process; nor during a download: Keras tidies up
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        for dataset in datasets:
            rows = run(dataset, options)
            save_results(dataset.name, rows, options.output_dir)
            report(dataset.name, rows, options.output_dir)
    except (UserError, OSError) as error:
        sys.exit(f"network_pruning.py: error: {error}")


if __name__ == "__main__":
    main()

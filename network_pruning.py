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

The pruning functions are NumPy in, NumPy out:

    from network_pruning import prune_neurons, prune_weights, compact, refit

`prune_model` prunes and refits a Keras model. Training needs `configure_tensorflow()` first.
"""

import argparse
import contextlib
import errno
import functools
import gzip
import importlib.util
import math
import numbers
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("tensorflow", "numpy", "matplotlib", "pandas", "tqdm", "scikit-learn")


def require(*names):
    """Import packages. Raise ImportError, with one line, if one is missing, hidden or broken."""
    beside = Path(__file__).resolve().parent
    for name in names:
        spec = importlib.util.find_spec(name.partition(".")[0])
        origin = Path(spec.origin) if spec and spec.origin else None
        # a package is a folder, and not one beside the script
        if origin and (not spec.submodule_search_locations or origin.parents[1] == beside):
            raise ImportError(f"{origin} hides the package {name}; rename it")
        try:
            if not origin:
                raise ModuleNotFoundError(f"No module named {name!r}")
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            requirements = Path(__file__).with_name("requirements.txt")
            packages = ["-r", str(requirements)] if requirements.exists() else PACKAGES
            command = subprocess.list2cmdline([sys.executable, "-m", "pip", "install", *packages])
            raise ImportError(f"{error}; run {command}") from error
        except (Exception, SystemExit) as error:  # broken packages raise exceptions of many types
            raise ImportError(f"{name} cannot be imported: {reason_of(error)}") from error


def reason_of(error):
    """Return what an exception says, in one line: the system's words, or else type and message."""
    text = error.strerror if isinstance(error, OSError) else None
    return " ".join((text or f"{type(error).__name__}: {error}").split())


if __name__ == "__main__":
    try:
        require("numpy", "tqdm")
    except ImportError as error:
        sys.exit(f"network_pruning.py: error: {error}")

import numpy as np
from tqdm import tqdm

# TensorFlow takes seconds to import, pandas and Matplotlib take half a second: --help and `import
# network_pruning` do without them.
tf = keras = None  # set by `configure_tensorflow`

__all__ = ["prune_weights", "prune_neurons", "compact", "refit", "prune_model", "main"]

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

# -------------------------------------------------------------------------- used by all sections

# a progress bar where standard error is a terminal
progress = functools.partial(tqdm, leave=False, disable=None if sys.stderr else True)


def say(text, stream=None):
    """Print text above the progress bars; where nobody reads it any more, the job goes on."""
    stream = stream or sys.stdout
    try:
        with tqdm.external_write_mode():
            print(text, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):  # a notebook's stream is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def checksum(arrays):
    """Return a checksum of the bytes of arrays."""
    return functools.reduce(lambda crc, array: zlib.crc32(array.tobytes(), crc), arrays, 0)


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong and how to fix it."""


def between(kind, low, high):
    """Return a function that reads a number of this kind from `low` to `high`, both included.

    That function raises ArgumentTypeError or ValueError for any other text.
    """

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value" by it
    return parse


# of options, and of the columns of the CSV
FRACTION = between(float, 0, 1)
POSITIVE = between(float, 0, sys.float_info.max)
RATE = between(float, 1e-6, 1e6)
NATURAL = between(int, 0, 2**32)
COUNT = between(int, 1, 2**31 - 1)


# ------------------------------------------------------------------------------------ pruning
# NumPy in, NumPy out.


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
    # the magnitude of the least integer would overflow
    scores = np.abs(kernel if kernel.dtype.kind == "f" else kernel.astype(np.float64))
    return zero_lowest(kernel, scores, sparsity)


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
    # float64, in which the squares of float32 weights neither overflow nor vanish
    norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), axis=0)
    return zero_lowest(kernel, norms, sparsity)


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


def zero_lowest(kernel, scores, sparsity):
    """Return a copy of a kernel with its weights or units of the lowest scores set to 0.

    scores: of the weights, in the shape of the kernel, or of the units, [units]. Of equal ones the
    first in C order go first. Takes linear time. Raises ValueError for a score that is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    count = round(float(sparsity) * scores.size)  # a NumPy float16 cannot count that far
    if count == 0:
        return kernel.copy()
    limit = np.partition(scores, count - 1, axis=None)[count - 1]
    removed = scores < limit
    equal = np.flatnonzero(scores == limit)
    removed.flat[equal[: count - np.count_nonzero(removed)]] = True
    return np.where(removed, kernel.dtype.type(0), kernel)


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
    without units. Raises ValueError unless the kernels have two dimensions, none of them 0, and fit
    each other.
    """
    kernels = [np.asarray(kernel) for kernel in kernels]
    shapes = [kernel.shape for kernel in kernels]
    chained = all(before[-1:] == after[:1] for before, after in zip(shapes, shapes[1:]))
    if {len(shape) for shape in shapes} != {2} or not chained:
        advice = "leave out the output bias; hidden layers with biases cannot be compacted"
        raise ValueError(f"not kernels [fan_in, units] of consecutive layers: {shapes}; {advice}")
    if any(0 in shape for shape in shapes):
        raise ValueError(f"a layer without inputs or units: {shapes}")
    units = live_units(kernels)
    ends = zip(kernels, units, units[1:])
    small = [kernel[np.ix_(rows, columns)] for kernel, rows, columns in ends]
    connected = all(kernel.any() for kernel in small)
    return small if connected else [np.zeros_like(kernel) for kernel in small]


@np.errstate(over="ignore", invalid="ignore")  # a result that is not finite is refused
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
    computes in the dense network. steps: the more, the closer to the minimum. ridge: at least 0,
    relative to the mean square of the inputs that are not always 0. Raises ValueError for shapes
    that do not fit each other, no samples, values that are not finite, and a result that would not
    be.
    """
    kernel, inputs, targets = check_refittable(kernel, inputs, targets, ridge)
    errors, error_exponents = in_unit_range(targets - inputs @ kernel, axis=0)
    inputs, input_exponent = in_unit_range(inputs)
    gram = inputs.T @ inputs
    squares = gram.diagonal()
    penalty = ridge * squares.sum() / max(np.count_nonzero(squares), 1)
    gram += penalty * np.eye(len(gram), dtype=gram.dtype)
    diagonal = np.maximum(gram.diagonal(), np.finfo(gram.dtype).tiny)
    scale = 1 / np.sqrt(diagonal)[:, np.newaxis]
    right = scale * (inputs.T @ errors)
    change = scale * conjugate_gradients(scale * gram * scale.T, right, kernel != 0, steps)
    result = kernel + np.ldexp(change, error_exponents - input_exponent)
    if not np.isfinite(result).all():
        raise ValueError(f"the refit weights are too large for {result.dtype}")
    return result


def conjugate_gradients(matrix, right, kept, steps):
    """Solve matrix @ x = right for each column of x, which is 0 where `kept` is False.

    matrix: [n, n], symmetric, positive semidefinite, with a diagonal of ones. right, kept: [n,
    columns]. A column that has converged up to rounding stays as it is.
    """
    epsilon = np.finfo(matrix.dtype).eps
    kept = kept.astype(matrix.dtype)
    x = np.zeros_like(right)
    residual = direction = kept * right
    square = column_products(residual, residual)
    negligible = epsilon**2 * square
    for _ in range(steps):
        curved = kept * (matrix @ direction)
        curvature = column_products(direction, curved)
        # where rounding hides the curvature, a step might be a long one in any direction
        visible = epsilon * column_products(direction, direction)
        going = (square > negligible) & (curvature > visible)
        step = np.where(going, square / np.where(going, curvature, 1), 0)
        x += step * direction
        residual = residual - step * curved
        previous = np.where(going, square, 1)
        square = column_products(residual, residual)
        direction = residual + square / previous * direction
    return x


def column_products(a, b):
    """Return the inner product of each column of a with that of b."""
    return np.einsum("ij,ij->j", a, b)


def in_unit_range(array, axis=None):
    """Divide an array by a power of 2, or by one along an axis; return the exponents, too.

    The largest magnitude is then in [0.5, 1): its square neither overflows nor vanishes, and no
    number has lost a digit.
    """
    exponents = np.frexp(np.abs(array).max(axis=axis, initial=0))[1]
    return np.ldexp(array, -exponents), exponents


def check_refittable(kernel, inputs, targets, ridge):
    """Return the arrays of `refit` as arrays of one float type; raise ValueError if unfit."""
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge is a finite number of at least 0, not {ridge}")
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


def initial_network(sizes, rng):
    """Make an untrained network: Glorot-uniform kernels, a bias of 0; sizes: see `Network.sizes`.

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


def preactivations(network, inputs):
    """What each layer computes from its inputs, before bias and activation: arrays [n, units]."""
    return [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, network.kernels)]


def of_live_units(outputs, kernels):
    """Choose from outputs of each layer, [n, units], the units that are live in pruned kernels."""
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


def prune_model(model, sparsity, images):
    """Return a copy of a trained Keras model, its Dense layers pruned by magnitude and refit.

    The last Dense layer is the classifier: it is refit, but not pruned. Biases and other layers
    stay as they are. Compile the copy before you evaluate it. See `prune_weights` and `refit`.

    model: Sequential or functional. sparsity: a fraction in [0, 1]. images: [n, ...], what the
    model is fed; 1,000 training images will do, without labels. Raises ValueError for a model
    without hidden Dense layers, or with one whose kernel is not what it multiplies by, as with
    adapters (LoRA), quantized weights or a subclass of Dense.
    """
    from keras import Model, layers, models

    def received(network, name):
        layer = network.get_layer(name)
        part = Model(network.inputs[0], layer.input)
        return part.predict(images, verbose=0).reshape(-1, layer.input.shape[-1])

    dense = [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    if len(dense) < 2:
        raise ValueError("the model has no Dense layers before its classifier")
    for layer in dense:
        if type(layer) is not layers.Dense or len(layer.weights) != 1 + layer.use_bias:
            reasons = "a subclass, adapters (merge them first) or quantized weights"
            raise ValueError(f"layer {layer.name} is no plain Dense layer: it has {reasons}")
    # the layers of a model may also be those of others; the layers of a clone are its own
    trained, pruned = models.clone_model(model), models.clone_model(model)
    trained.set_weights(model.get_weights())
    pruned.set_weights(model.get_weights())
    for layer in dense:
        kernel, *bias = layer.get_weights()
        targets = received(trained, layer.name) @ kernel
        if layer is not dense[-1]:
            kernel = prune_weights(kernel, sparsity)
        kernel = refit(kernel, received(pruned, layer.name), targets)
        pruned.get_layer(layer.name).set_weights([kernel, *bias])
    return pruned


# --------------------------------------------------------------------------------------- data

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}  # downloaded by keras.datasets
PAGES = {  # where their files can be downloaded by hand
    "mnist": "https://github.com/cvdfoundation/mnist",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist",
}
BUNDLED = "digits"  # comes with scikit-learn
PARTS = ("training images", "training labels", "test images", "test labels")
DOWNLOAD_TIMEOUT = 10  # seconds without data


def dataset_name(text):
    """Return the name of a data set; raise ArgumentTypeError unless it can name one folder."""
    name = str(Path(text))  # without a slash at the end
    unfit = re.search("[\0-\x1f\x7f\ud800-\udfff]", name)  # for a CSV
    if name != Path(text).name or name in ("", "..") or unfit or len(name.encode()) > 150:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a folder")
    return name


class Dataset(NamedTuple):
    """A data set as it is used; all but the test labels are tensors on the device."""

    name: str
    train_images: object  # [n, pixels], float32, divided by the brightest pixel of training
    train_targets: object  # [n, classes], float32, one-hot
    test_images: object  # as those of training
    test_labels: np.ndarray  # [n], indices of the classes
    checksum: int  # of the images and labels as they came

    @property
    def majority_accuracy(self):
        """Accuracy on the test set of always naming its most frequent class."""
        return np.bincount(self.test_labels).max() / len(self.test_labels)


def load_datasets(names, data_dir):
    """Load the named data sets; where none is named, MNIST and Fashion-MNIST.

    One of these two that cannot be downloaded is left out; if both are, the bundled digits are used
    instead. Raises UserError for any other data set that is unavailable.
    """
    if data_dir and not data_dir.is_dir():
        raise UserError(f"{data_dir} (--data-dir) is not a folder")
    if names or data_dir:
        return [load_dataset(name, data_dir) for name in dict.fromkeys(names or TITLES)]
    datasets = []
    for name in TITLES:
        try:
            datasets.append(load_dataset(name, None))
        except UserError as error:
            say(error, sys.stderr)
    if not datasets:
        say(f"Using scikit-learn's {BUNDLED} instead.", sys.stderr)
    return datasets or [load_dataset(BUNDLED, None)]


def load_dataset(name, data_dir):
    """Load one data set, from the IDX files in a folder of `data_dir` if given, and check it."""
    if name == BUNDLED and not (data_dir and os.path.lexists(data_dir / name)):
        arrays = load_digits()
    elif data_dir:
        files = files_below(data_dir / name)
        arrays = [read_part(data_dir / name, files, part) for part in PARTS]
    else:
        arrays = download(name)
    return prepare(name, arrays)


def files_below(folder):
    """List the files in a folder and below it, links followed, but for hidden ones.

    Raises UserError if a folder cannot be read.
    """

    def fail(error):
        raise UserError(f"{error.filename} (in --data-dir) cannot be read: {error.strerror}")

    files = []
    visited = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(place) in visited:  # a link to a folder above it
            folders.clear()
            continue
        visited.add(os.path.realpath(place))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def read_part(folder, files, part):
    """Read the one of these files whose name says that it holds a part.

    Its name has `images` or `labels` after `train`, or else after `test` or `t10k`. Several that
    hold the same, such as a packed file beside the unpacked one, count as one. Raises UserError if
    there is none, or several that differ.
    """
    which, kind = part.split()
    word = "train" if which == "training" else "(?<![a-z])(test|t10k)"
    found = [path for path in files if re.search(f"{word}.*{kind}", path.name.lower())]
    arrays = [read_idx(path) for path in found]
    if arrays and all(np.array_equal(array, arrays[0]) for array in arrays):
        return arrays[0]
    names = ", ".join(str(path.relative_to(folder)) for path in (found or files)[:9]) or "no files"
    raise UserError(
        f"{folder} (--data-dir) needs one file of {part}, named like MNIST's; found there: {names}"
    )


def read_idx(path):
    """Read an IDX file of unsigned bytes, plain or compressed by gzip, into an array.

    Raises UserError, naming the file, if it is damaged or holds something else.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an IDX file of unsigned bytes")
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * shape.size).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
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
    require("sklearn.datasets")
    from sklearn import datasets

    digits = datasets.load_digits()
    images = digits.images.astype(np.uint8)
    split = len(images) - 360
    return images[:split], digits.target[:split], images[split:], digits.target[split:]


def prepare(name, arrays):
    """Check the arrays of a data set and return them in the form in which they are used.

    arrays: training images [n, height, width], training labels [n], and the same for testing.
    Raises UserError unless they fit each other.
    """
    train_images, train_labels, test_images, test_labels = arrays
    fitting = train_images.ndim == 3 and test_images.shape[1:] == train_images.shape[1:]
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        fitting = fitting and images.any() and labels.shape == images.shape[:1]
    if not fitting:
        shapes = ", ".join(f"{part} {array.shape}" for part, array in zip(PARTS, arrays))
        wanted = "images [n, height, width], not all black, and n labels"
        raise UserError(f"{name}: not {wanted}: {shapes}")
    classes, train_classes = np.unique(train_labels, return_inverse=True)
    unknown = np.setdiff1d(test_labels, classes)
    if classes.size < 2:
        raise UserError(f"{name}: training labels of one class, {classes}; two are needed")
    if unknown.size > 0:
        raise UserError(f"{name}: test labels that the training labels lack: {unknown}")
    brightest = float(train_images.max())

    def scaled(images):
        return tf.cast(images.reshape(len(images), -1), tf.float32) / brightest

    targets = tf.one_hot(train_classes, classes.size)
    test_classes = np.searchsorted(classes, test_labels)
    data = checksum(arrays)
    return Dataset(name, scaled(train_images), targets, scaled(test_images), test_classes, data)


# ------------------------------------------------------------------------------------ methods
# To add a method or a repair, write a function and add it to METHODS or REPAIRS. An entry in STYLES
# gives it a name for readers and a colour; without one, it is drawn under its own name.
#
# A method takes the kernels of the hidden layers, what each layer receives for the images to refit
# on (None if there are none), a sparsity and a generator, and returns pruned copies of the kernels.
# The generator starts anew at each sparsity, so that a higher sparsity removes a superset of what a
# lower one removes.


def weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude."""
    return [prune_weights(kernel, sparsity) for kernel in kernels]


def neuron(kernels, inputs, sparsity, rng):
    """Remove the neurons of smallest L2 norm."""
    return [prune_neurons(kernel, sparsity) for kernel in kernels]


def matched_weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude until as many are left as `neuron` leaves live.

    Some of those left may lead to units that reach nothing, or come from units that nothing
    reaches, and so have no effect.
    """
    output = np.ones((kernels[-1].shape[1], 1))  # an output layer that every unit reaches
    *live, _ = compact([*neuron(kernels, inputs, sparsity, rng), output])
    shares = [1 - np.count_nonzero(left) / kernel.size for kernel, left in zip(kernels, live)]
    return list(map(prune_weights, kernels, shares))


def scaled_weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude times the L2 norm of the input that they multiply.

    The score of Wanda (Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language
    Models"). Wanda compares weights within each unit, this within each layer.
    """
    scores = [np.abs(k) * np.linalg.norm(x, axis=0)[:, np.newaxis] for k, x in zip(kernels, inputs)]
    return [zero_lowest(kernel, score, sparsity) for kernel, score in zip(kernels, scores)]


def random_weight(kernels, inputs, sparsity, rng):
    """Remove weights at random."""
    scores = [rng.permutation(kernel.size).reshape(kernel.shape) for kernel in kernels]
    return [zero_lowest(kernel, score, sparsity) for kernel, score in zip(kernels, scores)]


def random_neuron(kernels, inputs, sparsity, rng):
    """Remove neurons at random."""
    scores = [rng.permutation(kernel.shape[1]) for kernel in kernels]
    return [zero_lowest(kernel, score, sparsity) for kernel, score in zip(kernels, scores)]


def global_weight(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude of all layers, as torch's `global_unstructured`."""
    weights = np.concatenate([kernel.reshape(-1, 1) for kernel in kernels])
    ends = np.cumsum([kernel.size for kernel in kernels])
    layers = np.split(prune_weights(weights, sparsity), ends[:-1])
    return [layer.reshape(kernel.shape) for layer, kernel in zip(layers, kernels)]


METHODS = {
    "weight": weight,
    "neuron": neuron,
    "matched_weight": matched_weight,
    "scaled_weight": scaled_weight,
    "global_weight": global_weight,
    "random_weight": random_weight,
    "random_neuron": random_neuron,
}
DEFAULT_METHODS = ("weight", "neuron", "matched_weight", "random_weight", "random_neuron")

# A repair takes a pruned network without the units that are not live, the images to refit on, and
# what these units computed in the dense network, before bias and activation: arrays [n, units], one
# for each layer. It returns a repaired network.
REPAIRS = {"refit_output": refit_output, "refit": refit_layers}

# --------------------------------------------------------------------------------- experiment


def rng_for(seed, purpose):
    """Make the generator of one purpose, so that no option changes what another one draws."""
    return np.random.default_rng([seed, *purpose.encode()])


def choose_images(images, count, seed):
    """Choose up to `count` training images to refit on: an array [count, pixels]."""
    count = min(count, len(images))
    chosen = rng_for(seed, "refit images").choice(len(images), count, replace=False)
    return tf.gather(images, chosen).numpy()


def evaluate(outputs, labels):
    """Accuracy in [0, 1] and mean cross-entropy in nats of logits [n, classes]."""
    outputs = outputs.astype(np.float64)
    losses = np.logaddexp.reduce(outputs, axis=1) - outputs[np.arange(len(labels)), labels]
    return np.mean(outputs.argmax(axis=1) == labels), losses.mean()


def train_on(dataset, network, epochs, options, rng):
    """Train a network on a data set as the options say; see `train`."""
    size, rate = options.batch_size, options.learning_rate
    return train(network, dataset.train_images, dataset.train_targets, epochs, size, rate, rng)


def train_dense(dataset, seed, options):
    """Train the dense network of a seed."""
    sizes = (dataset.train_images.shape[1], *options.hidden_units, dataset.train_targets.shape[1])
    untrained = initial_network(sizes, rng_for(seed, "new dense"))
    return train_on(dataset, untrained, options.epochs, options, rng_for(seed, "train dense"))


def prune_dense(dense, dataset, seed, options):
    """Run the experiment on a dense network: prune, repair, measure.

    Returns the rows of the results, one for each network and repair, and by name the dense and the
    neuron-pruned networks, retrained, else refit.
    """
    rows = []
    weights = sum(kernel.size for kernel in dense.hidden)

    def record(method, sparsity, repair, network):
        features = layer_inputs(network, dataset.test_images)[-1]
        without_bias = tf.matmul(features, network.kernels[-1]).numpy()
        biases = {repair: network.bias}
        if repair == "none":
            biases["no_bias"] = 0
        for name, bias in biases.items():
            accuracy, loss = evaluate(without_bias + bias, dataset.test_labels)
            live = sum(np.count_nonzero(kernel) for kernel in network.hidden)
            stored = sum(kernel.size for kernel in network.hidden)
            rows.append(
                {
                    "dataset": dataset.name,
                    "seed": seed,
                    "method": method,
                    "sparsity": sparsity,
                    "repair": name,
                    "test_accuracy": accuracy,
                    "test_loss": loss,
                    "live_fraction": live / weights,
                    "stored_fraction": stored / weights,
                    "layer_sizes": network.sizes,
                }
            )

    def train_further(network, epochs, name):
        return train_on(dataset, network, epochs, options, rng_for(seed, f"train {name}"))

    record("dense", 0.0, "none", dense)
    models = {"dense": dense}
    if options.retrain_epochs > 0:
        models["dense"] = train_further(dense, options.retrain_epochs, "dense again")
        record("dense", 0.0, "retrain", models["dense"])

    inputs = None
    if options.refit_images > 0:
        images = choose_images(dataset.train_images, options.refit_images, seed)
        inputs = [np.asarray(received) for received in layer_inputs(dense, images)]
        outputs = preactivations(dense, inputs)
    for method in progress(options.methods, unit="method"):
        for sparsity in options.sparsities:
            rng = rng_for(seed, f"prune {method}")
            kernels = [*METHODS[method](dense.hidden, inputs, sparsity, rng), dense.kernels[-1]]
            pruned = Network(compact(kernels), dense.bias)
            states = {"none": pruned}
            if options.refit_images > 0:
                targets = of_live_units(outputs, kernels)
                for name, repair in REPAIRS.items():
                    states[name] = repair(pruned, images, targets)
            if options.retrain_epochs > 0:
                name = f"{method} {sparsity}"
                states["retrain"] = train_further(pruned, options.retrain_epochs, name)
            for name, network in states.items():
                record(method, sparsity, name, network)
            if method == "neuron":
                models[f"neuron-{sparsity}"] = states.get("retrain", states.get("refit", pruned))
                if options.retrain_epochs > 0 and pruned.kernels[0].any():
                    # a control: an untrained network of these sizes, for as many epochs in all
                    rng = rng_for(seed, f"new scratch {sparsity}")
                    untrained = initial_network(pruned.sizes, rng)
                    epochs = options.epochs + options.retrain_epochs
                    scratch = train_further(untrained, epochs, f"scratch {sparsity}")
                    record("scratch", sparsity, "retrain", scratch)

    seconds = time_sizes([row["layer_sizes"] for row in rows], dataset.test_images)
    for row in rows:
        row["speedup"] = seconds[dense.sizes] / seconds[row["layer_sizes"]]
        row["layer_sizes"] = "-".join(map(str, row["layer_sizes"]))
    return rows, models


def time_sizes(layer_sizes, images):
    """Time a pass over images for networks of these sizes; return {sizes: best seconds}.

    Only the sizes decide how fast a network is, so the weights are random ones. Every round visits
    every network once, so that changes in the machine's speed affect all alike.
    """
    seconds = dict.fromkeys(layer_sizes, math.inf)
    networks = {}
    for sizes in seconds:
        network = initial_network(sizes, np.random.default_rng(0))
        networks[sizes] = network._replace(kernels=list(map(tf.constant, network.kernels)))
    for _ in range(TIMING_ROUNDS):
        for sizes, network in networks.items():
            began = time.perf_counter()
            logits(network, images).numpy()  # waits for a GPU
            seconds[sizes] = min(seconds[sizes], time.perf_counter() - began)
    return seconds


# ------------------------------------------------------------------------------------ results
# Each job writes a CSV for each seed to `runs` in its output folder, under a name of its own, and
# touches no other job's. All else in the folder is made from these files: a CSV with all rows of a
# data set, and its figures. So jobs add seeds, methods, levels and repairs to one another.

KEY = {"dataset": dataset_name, "seed": NATURAL, "method": str, "sparsity": FRACTION, "repair": str}
MEASURED = {
    "test_accuracy": FRACTION,
    "test_loss": POSITIVE,
    "live_fraction": FRACTION,
    "stored_fraction": FRACTION,
    "speedup": POSITIVE,
}
RECIPE = {
    "data": NATURAL,  # a checksum, as those of the trained network and of the script are
    "majority_accuracy": FRACTION,
    "hidden_units": str,
    "epochs": COUNT,
    "batch_size": COUNT,
    "learning_rate": RATE,
    "refit_images": NATURAL,
    "retrain_epochs": NATURAL,
}
MADE_BY = {"network": NATURAL, "script": NATURAL, "device": str, "versions": str}
COLUMNS = KEY | MEASURED | {"layer_sizes": str} | RECIPE | MADE_BY  # and how each is read
CSV = dict(index=False, lineterminator="\n")

# rows with the same values in the first columns must agree in the second ones, for this reason
AGREEING = [
    (["dataset"], [*RECIPE], "a folder holds one recipe"),
    (["dataset", "seed"], ["network"], "other processors, threads, versions or code train others"),
]


def recipe_of(dataset, options):
    """Return how a job trains and repairs, as the columns of the CSV have it."""
    columns = {
        "data": dataset.checksum,
        "majority_accuracy": round(dataset.majority_accuracy, DECIMALS),
        "hidden_units": "-".join(map(str, options.hidden_units)),
    }
    return {column: (vars(options) | columns)[column] for column in RECIPE}


def run_path(dataset, seed, options):
    """Return the path of the CSV file of a job for a seed; run again, a job has the same."""
    settings = repr((sorted(options.methods), options.sparsities, recipe_of(dataset, options)))
    name = f"{dataset.name}-seed{seed}-{zlib.crc32(settings.encode()):08x}.csv"
    return options.output_dir / "runs" / name


def run_files(folder):
    """Return the CSV files of the jobs in a folder, each with the time of its last change."""
    try:
        names = sorted(os.listdir(folder / "runs"))
        paths = [folder / "runs" / name for name in names if re.fullmatch(r"[^.].*\.csv", name)]
        return {path: path.stat().st_mtime_ns for path in paths}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def read_runs(files):
    """Read the rows of jobs' files, with the columns file and written. Raises as `read_run`."""
    import pandas

    tables = [read_run(path).assign(file=path, written=written) for path, written in files.items()]
    tables = [table for table in tables if not table.empty]
    if not tables:
        return pandas.DataFrame(columns=[*COLUMNS, "file", "written"])
    return pandas.concat(tables, ignore_index=True)


def read_run(path):
    """Read the rows of a job's file.

    Raises UserError, naming file and column, if it is not as the script writes it.
    """
    import pandas

    as_text = {"keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        texts = pandas.read_csv(path, dtype=str, index_col=False, **as_text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a CSV file: {reason_of(error)}") from error
    table = pandas.DataFrame()
    for column, read in COLUMNS.items():
        if column not in texts:
            header = ",".join(map(str, texts.columns))
            raise UserError(f"{path} has no column {column}; its header is {header!r:.99}")
        try:
            table[column] = texts[column].map(read)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise UserError(f"{path}, column {column}: {error}") from error
    return table


def check_agreement(rows):
    """Raise UserError, naming two files, unless rows agree as AGREEING says.

    0 means not known or not done, and agrees with everything.
    """
    for same, columns, reason in AGREEING:
        for column in columns:
            known = rows[rows[column] != 0].drop_duplicates([*same, column])
            differing = known[known.duplicated(same, keep=False)].sort_values(same, kind="stable")
            if not differing.empty:
                first, second = differing.iloc[0], differing.iloc[1]
                which = ", ".join(f"{key} {first[key]}" for key in same)
                raise UserError(
                    f"{which}: {column} is {first[column]} in {first['file']}, {second[column]} in "
                    f"{second['file']}; {reason}: pass another --output-dir, or delete one of them"
                )


def check_job(rows, options, datasets, seeds, network_checksum=0):
    """Raise UserError unless a job agrees with the rows that jobs have left in its folder.

    network_checksum: that of the trained dense network, where it is known already.
    """
    import pandas

    jobs = []
    replaced = []
    for dataset in datasets:
        job = recipe_of(dataset, options) | {"network": network_checksum, "file": "this job"}
        jobs += [job | {"dataset": dataset.name, "seed": seed} for seed in seeds]
        replaced += [run_path(dataset, seed, options) for seed in seeds]
    names = [dataset.name for dataset in datasets]
    others = rows[rows["dataset"].isin(names) & ~rows["file"].isin(replaced)]
    check_agreement(pandas.DataFrame(others.to_dict("records") + jobs))


def run_table(rows, recipe, network_checksum, device):
    """Return the rows of a seed as a data frame, with the recipe and with what made them."""
    import pandas

    made_by = {
        "network": network_checksum,
        "script": zlib.crc32(Path(__file__).read_bytes()),
        "device": device,
        "versions": f"tensorflow {tf.__version__}, numpy {np.__version__}",
    }
    table = pandas.DataFrame(rows).assign(**recipe, **made_by)
    return table.round(dict.fromkeys(MEASURED, DECIMALS))[[*COLUMNS]]


def write_all(files):
    """Write files, {path: function that writes to a path}; remove from it what is written.

    Each atomically replaces an earlier file. Raises UserError if some cannot be written; earlier
    files are then left as they were.
    """
    failures = []
    for path, write in list(files.items()):
        try:
            target = Path(os.path.realpath(path))  # a link stays one
            if target.exists() and not target.is_file():
                raise OSError(errno.EINVAL, "it is no regular file")
            target.parent.mkdir(parents=True, exist_ok=True)
            # a folder of its own: another process may be writing the same file
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
                write(Path(folder, path.name))
                os.replace(Path(folder, path.name), target)
            del files[path]
        except Exception as error:  # drawing fails in many ways, and must not end the job
            failures.append(f"{path} cannot be written: {reason_of(error)}")
    if failures:
        raise UserError(failures[0])


def curves_of(rows):
    """Return the rows of a data set as curves: of each method, after each repair.

    A curve starts at the dense networks of its own seeds, after the same repair if that was
    measured, else as trained. Raises UserError if there are no pruned networks, or if a dense one
    is missing.
    """
    import pandas

    dense = rows[(rows["method"] == "dense") & (rows["sparsity"] == 0)]
    pruned = rows[(rows["method"] != "dense") & (rows["sparsity"] > 0)]
    trained = dense[dense["repair"] == "none"]
    missing = sorted(set(pruned["seed"]) - set(trained["seed"]))
    if missing or "none" not in set(pruned["repair"]):
        what = f"the dense network of seed {missing[0]}" if missing else "a pruned network"
        raise UserError(f"{rows['dataset'].iloc[0]} cannot be drawn without {what}, repair none")
    curves = []
    for (repair, method), curve in pruned.groupby(["repair", "method"], sort=False):
        start = dense[dense["repair"] == (repair if repair in set(dense["repair"]) else "none")]
        start = start[start["seed"].isin(curve["seed"])]
        curves += [start.assign(repair=repair, method=method), curve]
    return pandas.concat(curves, ignore_index=True).assign(kept=lambda rows: 1 - rows["sparsity"])


# ------------------------------------------------------------------------------------ figures
# Drawn from the CSV files alone, as the table on the terminal is. Blue and orange differ for most
# kinds of colour vision, and in lightness when printed in grey; the random baselines are thin and
# lie behind.

BASELINE = dict(ls=":", lw=1, zorder=1.5)
STYLES = {  # of methods and repairs, as for Axes.plot
    "weight": dict(label="weights, by magnitude", color="#00508f", marker="o"),
    "neuron": dict(label="neurons, by L2 norm", color="#e07b00", marker="s", ls="--"),
    "matched_weight": dict(label="weights, matched to neurons", color="#45a5e0", marker="^"),
    "scaled_weight": dict(label="weights, magnitude × input", color="#c03030", marker="P", ls="-."),
    "global_weight": dict(label="weights, ranked globally", color="#9040b0", marker="D"),
    "random_weight": dict(BASELINE, label="random weights", color="#707070", marker="o"),
    "random_neuron": dict(BASELINE, label="random neurons", color="#a0a0a0", marker="s"),
    "scratch": dict(label="small networks from scratch", color="#2a8000", marker="v", ls="-."),
    # repairs, the stronger the darker
    "none": dict(label="as pruned", color="#f0a030", marker="o"),
    "no_bias": dict(label="without the output bias", color="#e06040", marker="^", ls=":"),
    "refit_output": dict(label="output layer refit", color="#b04080", marker="D", ls="-."),
    "refit": dict(label="refit", color="#5050b0", marker="s", ls="--"),
    "retrain": dict(label="retrained", color="#101040", marker="v"),
}
NOT_IN_FIRST = ("matched_weight", "global_weight")  # need an explanation

TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)  # of sparsity
AXES = {  # what is drawn, and the title of its axis
    "kept": "sparsity (log scale of the share kept)",
    "live_fraction": "share of the weights that can act (live)",
    "test_accuracy": "test accuracy",
    "speedup": "speed-up over dense",
}


def ordered(names):
    """Sort names of methods or repairs as STYLES has them; others come last."""
    places = dict(zip(STYLES, range(len(STYLES))))
    return sorted(set(names), key=lambda name: (places.get(name, len(places)), name))


def style_of(name):
    """Return how to draw a method or repair."""
    color = f"C{zlib.crc32(name.encode()) % 10}"
    return STYLES.get(name, dict(label=name, color=color, marker="x"))


def shared_levels(curve):
    """Return the rows of a curve at the levels where all its seeds were measured.

    A mean over other seeds than at the next level would look like an effect of the level.
    """
    seeds = curve.groupby("sparsity")["seed"].transform("nunique")
    return curve[seeds == curve["seed"].nunique()]


def draw_panel(ax, curves, by, x="kept", y="test_accuracy"):
    """Draw column y against column x, a share: mean, spread and single seeds of each curve.

    by: the column that tells the curves apart, "method" or "repair". Levels where nothing is left
    in any network are left out. Mean and spread are drawn at the levels that all seeds share; if
    there is none, means are not connected.
    """
    curves = curves[curves.groupby([by, "sparsity"])["live_fraction"].transform("max") > 0]
    curves = curves[curves[x] > 0].sort_values("sparsity")
    for name in ordered(curves[by]):
        curve = curves[curves[by] == name]
        style = style_of(name)
        pale = dict(color=style["color"], alpha=0.2)
        for _, single in curve.groupby("seed"):
            ax.plot(single[x], single[y], lw=0.5, **pale)
        shared = shared_levels(curve)
        if shared["sparsity"].nunique() == 1:
            shared = curve
            style = style | {"ls": "none"}
        levels = shared.groupby("sparsity")
        mean, deviation = levels[y].mean(), levels[y].std()
        ax.fill_between(levels[x].mean(), mean - deviation, mean + deviation, lw=0, **pale)
        ax.plot(levels[x].mean(), mean, ms=4, **style)
    label_axes(ax, x, y, least=max(curves[x].min(), 1e-4))


def label_axes(ax, x, y, least):
    """Scale and label the axes of a panel; least: the smallest share that is drawn."""
    ax.set(xscale="log", xlabel=AXES[x], ylabel=AXES[y])
    if x == "kept":
        ax.set_xticks([1 - tick for tick in TICKS], [f"{tick:g}" for tick in TICKS])
    else:
        ax.xaxis.set_major_formatter("{x:g}")
        least = min(least, 0.1)  # has a label, as 1 has
    if y == "speedup":
        ax.set_yscale("log", subs=(2, 5))
        ax.yaxis.set_major_formatter("{x:g}x")
        ax.yaxis.set_minor_formatter("{x:g}x")
    else:
        ax.set_ylim(0, 1.02)
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    ax.set_xlim(1.2, least / 1.2)
    ax.grid(color="#dddddd", lw=0.6)


def new_figure(width, height):
    """Make an empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=160, layout="constrained")


def draw_accuracy(curves):
    """Draw accuracy against sparsity, as pruned, with a close-up of the dense accuracy."""
    curves = curves[curves["repair"] == "none"]
    plain = curves[~curves["method"].isin(NOT_IN_FIRST)]
    curves = curves if plain.empty else plain
    dense = curves[curves["sparsity"] == 0].drop_duplicates("seed")["test_accuracy"].mean()
    majority = curves["majority_accuracy"].iloc[0]
    figure = new_figure(5.4, 6.8)
    close, whole = figure.subplots(2, sharex=True, height_ratios=(2, 5))
    for ax in (close, whole):
        draw_panel(ax, curves, "method")
        ax.axhline(dense, color="black", lw=0.8, label=f"dense network: {dense:.3f}")
        label = f"most frequent class: {majority:.3f}"
        ax.axhline(majority, color="black", lw=0.8, ls=(0, (1, 3)), label=label)
    whole.set_yticks(np.linspace(0, 1, 11))
    close.set(xlabel=None, ylabel="close-up", ylim=(dense - 0.05, dense + 0.01))
    add_texts(figure, "accuracy after one-shot pruning", curves)
    return figure


def draw_ladder(curves):
    """Draw accuracy after each repair against live weights: a panel for the first two methods."""
    methods = ordered(curves["method"])[:2]
    figure = new_figure(7.2, 4.6)
    axes = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for ax, method in zip(axes, methods):
        draw_panel(ax, curves[curves["method"] == method], "repair", x="live_fraction")
        ax.set_title(style_of(method)["label"])
        ax.label_outer()
    widest = min(ax.get_xlim()[1] for ax in axes)
    for ax in axes:
        ax.set_xlim(right=widest)
    add_texts(figure, "what each repair gives back", curves)
    return figure


def draw_analysis(curves):
    """Draw accuracy against sparsity of every method, a panel for each repair; the speed-up."""
    repairs = ordered(curves["repair"])
    columns = min(3, len(repairs) + 1)
    lines = math.ceil((len(repairs) + 1) / columns)
    figure = new_figure(3.6 * columns, 3.2 * lines + 1)
    axes = figure.subplots(lines, columns).flatten()
    for ax, repair in zip(axes, repairs):
        draw_panel(ax, curves[curves["repair"] == repair], "method")
        ax.set_title(style_of(repair)["label"])
    speed, *empty = axes[len(repairs) :]
    draw_panel(speed, curves[curves["repair"] == "none"], "method", y="speedup")
    speed.set_title("speed")
    for ax in empty:
        ax.remove()
    add_texts(figure, "what pruning breaks, and what repairs it", curves)
    return figure


def add_texts(figure, title, curves):
    """Add title, legend, and what was run in small print, so that a picture can stand alone."""
    first = curves.iloc[0]
    counts = curves.groupby(["repair", "method", "sparsity"])["seed"].nunique()
    seeds = " to ".join(map(str, dict.fromkeys([counts.min(), counts.max()])))
    made_by = [*curves["device"].unique(), *curves["versions"].unique()]
    made_by += [f"script {script:08x}" for script in curves["script"].unique() if script != 0]
    caption = (
        f"Hidden units: {first['hidden_units']}, ReLU; epochs of Adam: {first['epochs']}, at a "
        f"rate of {first['learning_rate']}, batches of {first['batch_size']}. Images to refit on: "
        f"{curves['refit_images'].max()}; epochs of retraining: {curves['retrain_epochs'].max()}. "
        f"Mean, standard deviation (band), single networks (pale); seeds per curve: {seeds}. "
        f"{'; '.join(made_by)}."
    )
    inches = figure.get_figwidth()
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


FIGURES = {"accuracy": draw_accuracy, "ladder": draw_ladder, "analysis": draw_analysis}


def save_figure(draw, curves, path):
    """Draw a figure of curves and save it, whatever the user's settings of Matplotlib are."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False  # a data set's name may have a dollar sign
        warnings.simplefilter("ignore")  # of a letter that the font lacks
        draw(curves).savefig(path)


def draw_figures(folder, name):
    """Write the CSV and the figures of a data set in a folder; return the curves drawn."""
    files = None
    while files != run_files(folder):  # again if other jobs have added to them meanwhile
        files = run_files(folder)
        rows = read_runs(files)
        rows = rows[rows["dataset"] == name]
        if rows.empty:
            raise UserError(f"{folder / 'runs'} has no results of {name} any more")
        check_agreement(rows)
        rows = rows.sort_values("written", kind="stable").drop_duplicates([*KEY], keep="last")
        rows = rows.sort_index().sort_values("seed", kind="stable", ignore_index=True)
        curves = curves_of(rows)
        outputs = {folder / f"{name}.csv": functools.partial(rows[[*COLUMNS]].to_csv, **CSV)}
        for kind, draw in FIGURES.items():
            outputs[folder / f"{name}-{kind}.png"] = functools.partial(save_figure, draw, curves)
        write_all(outputs)
    return curves


# ------------------------------------------------------------------------------- command line

USE_CPU = "set the environment variable CUDA_VISIBLE_DEVICES=-1 to run on the CPU"


def expanded(text):
    """Return the path that a text names; shells leave ~ alone in --option=~/folder."""
    return Path(os.path.expanduser(text))


def parse_options(arguments):
    """Parse the command line; exit with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description="Accuracy against sparsity of pruned networks. Defaults are in parentheses.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    sets = f"({' '.join(TITLES)}), {BUNDLED}, or folders in --data-dir"
    methods = f"of pruning: {' '.join(METHODS)} ({' '.join(DEFAULT_METHODS)})"
    models = "save dense and neuron-pruned networks for Keras"
    add("--datasets", nargs="+", type=dataset_name, metavar="NAME", help=sets)
    add("--data-dir", type=expanded, help="read IDX files from a folder with a folder per data set")
    add("--output-dir", type=expanded, default="plots", help="folder to write to (%(default)s)")
    add("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS, metavar="M", help=methods)
    add("--sparsities", nargs="+", type=FRACTION, default=SPARSITIES, help="fractions %(default)s")
    add("--refit-images", type=NATURAL, default=REFIT_IMAGES, help="0: no refit (%(default)s)")
    add("--retrain-epochs", type=NATURAL, default=0, help="after pruning; 0: none (%(default)s)")
    add("--seeds", nargs="+", type=NATURAL, default=SEEDS, help="one network each %(default)s")
    add("--hidden-units", nargs="+", type=COUNT, default=HIDDEN_UNITS, help="sizes %(default)s")
    add("--epochs", type=COUNT, default=EPOCHS, help="epochs of training (%(default)s)")
    add("--batch-size", type=COUNT, default=BATCH_SIZE, help="images per step (%(default)s)")
    add("--learning-rate", type=RATE, default=LEARNING_RATE, help="rate of Adam (%(default)s)")
    add("--save-models", action="store_true", help=models)
    add("--draw", action="store_true", help="only draw the results in --output-dir again")
    options = parser.parse_args(arguments)
    options.seeds = sorted(set(options.seeds))
    options.methods = list(dict.fromkeys(options.methods))
    options.sparsities = sorted(set(options.sparsities) - {0})
    if not options.sparsities:
        parser.error("--sparsities needs one above 0; the dense network is always measured")
    if "scaled_weight" in options.methods and options.refit_images == 0:
        parser.error("--methods scaled_weight needs images: pass --refit-images above 0")
    if options.save_models and "neuron" not in options.methods:
        parser.error("--save-models saves neuron-pruned networks: add neuron to --methods")
    for name in options.datasets or []:
        if not options.data_dir and name not in (*TITLES, BUNDLED):
            known = ", ".join([*TITLES, BUNDLED])
            parser.error(f"--datasets {name}: not {known}; others are folders in --data-dir")
    return options


def configure_tensorflow():
    """Import and configure TensorFlow; return the name of the first GPU, or else of the CPU.

    On a GPU, too, products are full float32, and a seed gives the same network each time. Raises
    ImportError for a package that cannot be imported, and UserError for a GPU that cannot be used.
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
    require("tensorflow", "keras")
    import keras
    import tensorflow as tf

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


def prepare_folder(options, datasets):
    """Make the output folder of a job; return the rows that jobs have left in it.

    Fails now rather than after training: raises OSError if the folder cannot be written to, and
    UserError if the job does not agree with what is there.
    """
    folder = options.output_dir
    Path(folder, "runs").mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder / "runs").close()
    shown = [dataset.name for dataset in datasets if Path(folder, f"{dataset.name}.csv").exists()]
    others = read_runs(run_files(folder))
    for name in sorted(set(shown) - set(others["dataset"])):
        advice = "move it away, or into runs/ if this script has written it"
        raise UserError(f"{folder / name}.csv would be lost: runs/ has no rows of it; {advice}")
    check_job(others, options, datasets, options.seeds)
    return others


def run_seed(dataset, seed, options, device, others):
    """Train and prune the network of a seed.

    others: rows that jobs have left in the folder. Returns what is to be written, {path: function
    that writes to a path}, and the accuracy of the dense network.
    """
    try:
        dense = train_dense(dataset, seed, options)
        network_checksum = checksum([*dense.kernels, dense.bias])
        check_job(others, options, [dataset], [seed], network_checksum)
        rows, models = prune_dense(dense, dataset, seed, options)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        advice = "pass smaller --hidden-units, --refit-images or --batch-size; on a GPU, "
        raise UserError(f"out of memory on the {device}: {advice}{USE_CPU}") from error
    path = run_path(dataset, seed, options)
    table = run_table(rows, recipe_of(dataset, options), network_checksum, device)
    files = {path: functools.partial(table.to_csv, **CSV)}
    if options.save_models:
        for name, model in models.items():
            files[path.with_name(f"{path.stem}-{name}.keras")] = keras_model(model).save
    return files, rows[0]["test_accuracy"]


def run_job(options):
    """Run the experiment with each seed on each data set; write and draw after every seed."""
    device = configure_tensorflow()
    datasets = load_datasets(options.datasets, options.data_dir)
    folder = options.output_dir
    others = prepare_folder(options, datasets)
    say(f"device: {device}")
    unwritten = {}  # files that could not be written; they are tried again after every seed
    undrawn = set()  # names of data sets
    curves = {}  # of data sets, by name
    runs = [(dataset, seed) for dataset in datasets for seed in options.seeds]
    for dataset, seed in (bar := progress(runs, unit="seed")):
        bar.set_description_str(f"{dataset.name}, seed {seed}")
        began = time.monotonic()
        files, accuracy = run_seed(dataset, seed, options, device, others)
        unwritten |= files
        undrawn.add(dataset.name)
        try:
            write_all(unwritten)
        except UserError as error:
            say(error, sys.stderr)
        for name in sorted(undrawn):
            try:
                curves[name] = draw_figures(folder, name)
                undrawn.remove(name)
            except UserError as error:
                say(error, sys.stderr)
        seconds = time.monotonic() - began
        say(f"{dataset.name}, seed {seed}: dense test accuracy {accuracy:.4f}, {seconds:.0f} s")
    for drawn in curves.values():
        report(drawn, folder)
    if unwritten or undrawn:
        left = ", ".join([*map(str, unwritten), *(f"the figures of {name}" for name in undrawn)])
        raise UserError(f"these could not be written, for the reason above: {left}")


def report(curves, folder):
    """Print mean accuracies of a data set as pruned, refit and retrained, and where the rest is.

    A line for each method, with the number of its seeds, and a column for each sparsity that these
    share, so that more methods make no table wider.
    """
    import pandas

    name = curves["dataset"].iloc[0]
    for repair in ordered(set(curves["repair"]) - {"no_bias", "refit_output"}):
        state = curves[curves["repair"] == repair]
        lines = {}
        for method in ordered(state["method"]):
            curve = state[state["method"] == method]
            means = shared_levels(curve).groupby("sparsity")["test_accuracy"].mean()
            lines[f"{method} ({curve['seed'].nunique()})"] = means
        table = pandas.DataFrame(lines).T.rename_axis(columns="method (seeds)")
        title = f"{name}, {style_of(repair)['label']}: mean test accuracy at each sparsity"
        say(f"\n{title}\n{table.to_string(float_format='{:.3f}'.format, na_rep='')}")
    say(f"\nsaved in {folder / name}.csv, drawn in {folder / name}-{{{','.join(FIGURES)}}}.png")


def draw_again(folder):
    """Draw all data sets in a folder again, after checking all of them."""
    rows = read_runs(run_files(folder))
    if rows.empty:
        raise UserError(f"{folder / 'runs'} (--output-dir) has no results of this script")
    check_agreement(rows)
    for _, of_name in rows.groupby("dataset"):
        curves_of(of_name)
    for name in rows["dataset"].unique():
        report(draw_figures(folder, name), folder)


def main(arguments=None):
    """Run the experiment; exit with a message and a status other than 0 if that fails."""
    options = parse_options(arguments)
    with contextlib.suppress(AttributeError):  # a notebook's lacks it, and a closed one is None
        sys.stdout.reconfigure(errors="replace")  # characters that it cannot encode
    try:
        require("pandas", "matplotlib.figure")
        if options.draw:
            draw_again(options.output_dir)
        else:
            run_job(options)
    except (UserError, ImportError, OSError) as error:
        sys.exit(f"network_pruning.py: error: {error}")


if __name__ == "__main__":
    if not hasattr(sys, "ps1"):  # as in IPython, whose %run shares the process with the notebook
        # Ctrl-C ends the process at once; as a KeyboardInterrupt it may wait for TensorFlow
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Matplotlib cannot be imported with an unknown backend, such as a notebook's
        os.environ["MPLBACKEND"] = "agg"
    main()

#!/usr/bin/env python3
"""Accuracy against sparsity of pruned MNIST and Fashion-MNIST classifiers.

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
from collections import namedtuple
from pathlib import Path

import numpy as np
from tqdm import tqdm

# TensorFlow takes seconds to import, pandas and Matplotlib take half a second: --help and `import
# network_pruning` do without them.
tf = None  # set by `configure_tensorflow`

# ---------------------------------------------------------------------------------- constants

HIDDEN_UNITS = (1000, 1000, 500, 200)
EPOCHS = 10
BATCH_SIZE = 128  # images
LEARNING_RATE = 1e-3
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}  # the defaults of TensorFlow 1
RUNS = 3  # networks per data set
SPARSITIES = (0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)

FAILED_LOSS = 100  # times the loss of chance, ln(classes); beyond it training did not recover
TIMING_ROUNDS = 3
DECIMALS = 6  # in the CSV

DOWNLOADED = ("mnist", "fashion_mnist")  # by keras.datasets
BUNDLED = "digits"  # with scikit-learn
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "scikit-learn digits"}
IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
IDX_BYTES = b"\0\0\x08"  # how a file of unsigned bytes begins; the number of dimensions follows
DOWNLOAD_TIMEOUT = 10  # seconds without data

# a progress bar where standard error is a terminal
progress = functools.partial(tqdm, leave=False, disable=None if sys.stderr else True)


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong and how to fix it."""


# ------------------------------------------------------------------------------------ network
# A network is a list of arrays: the kernels [fan_in, units] from first to output, and last the
# output layer's bias [classes]. Hidden layers have no bias, so a unit without incoming weights
# outputs 0 and really is gone.


def initial_network(sizes, rng):
    """Draw Glorot-uniform kernels for layers of these sizes, the input's first, and a bias of 0.

    Glorot and Bengio 2010, "Understanding the Difficulty of Training Deep Feedforward Neural
    Networks".
    """
    kernels = []
    for fan_in, units in zip(sizes, sizes[1:]):
        limit = math.sqrt(6 / (fan_in + units))
        kernels.append(rng.uniform(-limit, limit, (fan_in, units)).astype(np.float32))
    return [*kernels, np.zeros(sizes[-1], np.float32)]


def layer_sizes(kernels):
    """Sizes of the layers, the input's first."""
    return [kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)]


def count_weights(kernels):
    """Number of weights, zeros included."""
    return sum(kernel.size for kernel in kernels)


def unbiased_logits(kernels, images):
    """Logits [n, classes] of images [n, pixels] before the output bias is added."""
    activations = images
    for kernel in kernels[:-1]:
        activations = tf.nn.relu(tf.matmul(activations, kernel))
    return tf.matmul(activations, kernels[-1])


@functools.cache
def compiled(function):
    """Return `function` compiled by TensorFlow, which traces it once for each set of shapes."""
    return tf.function(function)


# ----------------------------------------------------------------------------------- training


def train_epoch(parameters, steps, images, labels, order, batch_size, rate):
    """Train on all images in the given order, batch by batch, and return the mean loss.

    parameters: for each array of the network what `trainable` makes. steps: variable that counts
    Adam's steps. rate: learning rate.
    """
    variables = [variable for variable, *_ in parameters]
    total = 0.0
    for first in tf.range(0, len(order), batch_size):
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
    return total / len(order)


def apply_adam(variable, m, v, mask, gradient, steps, rate):
    """Update a variable by a step of Adam (Kingma and Ba 2015), but not where the mask is 0.

    This is a single fused operation of TensorFlow; Keras 3's Adam is a chain of small ones.
    """
    gradient = gradient if mask is None else gradient * mask
    state = {"var": variable.handle, "m": m.handle, "v": v.handle}
    powers = {"beta1_power": ADAM["beta1"] ** steps, "beta2_power": ADAM["beta2"] ** steps}
    tf.raw_ops.ResourceApplyAdam(grad=gradient, lr=rate, **state, **powers, **ADAM)


def trainable(values):
    """Make a variable of a kernel or bias; return it with Adam's moments m and v, and a mask.

    The mask is 0 where weights of a kernel are, and None where all are trained.
    """
    masked = values.ndim > 1 and not values.all()
    mask = tf.constant(values != 0, tf.float32) if masked else None
    return [tf.Variable(values), tf.Variable(0 * values), tf.Variable(0 * values), mask]


def train(network, images, labels, epochs, options, rng):
    """Return a network trained further by Adam on softmax cross-entropy; weights of 0 stay 0.

    An epoch is a permutation of the images; Adam starts afresh. images: tensor [n, pixels] of
    float32 in [0, 1]. labels: tensor [n] of int64. options: has batch_size and learning_rate. rng:
    draws the order of the images. Raises UserError if an epoch ends with a loss that is not finite
    or far above that of chance.
    """
    parameters = [trainable(values) for values in network]
    # as tensors: TensorFlow would trace again for every new Python number
    batch_size, rate = tf.constant(options.batch_size), tf.constant(options.learning_rate)
    steps = tf.Variable(0.0)
    for epoch in progress(range(1, epochs + 1), unit="epoch"):
        order = tf.constant(rng.permutation(len(images)))
        loss = compiled(train_epoch)(parameters, steps, images, labels, order, batch_size, rate)
        if not loss < FAILED_LOSS * math.log(network[-1].size):  # true of NaN, too
            advice = f"pass a --learning-rate below {options.learning_rate:g}"
            raise UserError(f"training failed in epoch {epoch}: the loss is {loss:g}; {advice}")
    return [variable.numpy() for variable, *_ in parameters]


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
    return zero_lowest(kernel, rank(magnitudes(kernel)), sparsity)


def prune_neurons(kernel, sparsity):
    """Return a copy of a kernel with its units of smallest L2 norm set to 0.

    A unit's norm is that of its incoming weights, which are all removed with it (Li et al. 2017,
    "Pruning Filters for Efficient ConvNets", there with the L1 norm). Exactly
    `round(sparsity * units)` units are removed; of equal ones the first go first. A higher sparsity
    removes a superset of what a lower one removes. A removed unit that has a bias still outputs a
    constant: set its bias to 0 as well.

    Arguments as those of `prune_weights`.
    """
    kernel = check_prunable(kernel, sparsity)
    return zero_lowest(kernel, rank(unit_norms(kernel)), sparsity)


def check_prunable(kernel, sparsity):
    """Return `kernel` as an array; raise ValueError if it or `sparsity` is unfit for pruning."""
    kernel = np.asarray(kernel)
    if kernel.ndim < 2:
        raise ValueError(f"a kernel has shape [fan_in, units], not {list(kernel.shape)}")
    if kernel.dtype.kind not in "fiu" or not np.isfinite(kernel).all():
        raise ValueError(f"a kernel has finite real weights; this one, of {kernel.dtype}, does not")
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity <= 1:  # or not a number
        raise ValueError(f"sparsity is a fraction in [0, 1], not {sparsity!r}")
    return kernel


def rank(scores):
    """Place of each score in ascending order, from 0; of equal scores the first comes first."""
    order = np.argsort(scores, axis=None, kind="stable")
    return np.argsort(order).reshape(scores.shape)


def zero_lowest(kernel, ranks, sparsity):
    """Return a copy of a kernel whose `round(sparsity * ranks.size)` lowest ranks are set to 0.

    ranks: of the weights, in the shape of the kernel, or of the units, [units].
    """
    # a Python float, since a NumPy float16 is too short to count with
    count = round(float(sparsity) * ranks.size)
    return np.where(ranks >= count, kernel, kernel.dtype.type(0))


def magnitudes(kernel):
    """Magnitude of each weight, in the shape of the kernel."""
    return np.abs(kernel, dtype=np.float64)  # in which no integer's magnitude overflows


def unit_norms(kernel):
    """L2 norm of each unit's incoming weights, [units]."""
    # float64, in which the squares of float32 weights neither overflow nor vanish
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), axis=0)


def uniform(kernels, sparsity):
    """Return the sparsity of each layer: the same for all."""
    return [sparsity] * len(kernels)


def as_neurons(kernels, sparsity):
    """Return the sparsity of each layer that keeps as many weights as neuron pruning leaves live.

    Some of those kept may lead to units that reach nothing, or come from units that nothing
    reaches, and so be dead themselves.
    """
    classes = np.ones((kernels[-1].shape[1], 1))  # an output layer that every unit reaches
    *left, _ = compact([*(prune_neurons(kernel, sparsity) for kernel in kernels), classes])
    return [1 - np.count_nonzero(small) / kernel.size for kernel, small in zip(kernels, left)]


def by_global_rank(kernels, sparsity):
    """Return the sparsity of each layer if the smallest weights of all layers together are removed.

    That is the rule of torch's `global_unstructured`.
    """
    scores = np.concatenate([magnitudes(kernel).ravel() for kernel in kernels])
    removed = rank(scores) < round(sparsity * scores.size)
    ends = np.cumsum([kernel.size for kernel in kernels])
    return [layer.mean() for layer in np.split(removed, ends[:-1])]


METHODS = {  # name: what is scored in a kernel, and the sparsity of each layer
    "weight": (magnitudes, uniform),
    "neuron": (unit_norms, uniform),
    "matched_weight": (magnitudes, as_neurons),
    "random_weight": (magnitudes, uniform),  # only the shape of the scores counts
    "random_neuron": (unit_norms, uniform),
    "global_weight": (magnitudes, by_global_rank),
}


def prune(kernels, method, sparsities, rng):
    """Yield the kernels of hidden layers, [fan_in, units] each, pruned at each of the sparsities.

    method: a key of METHODS. rng: draws the ranks for the random baselines.
    """
    score, layer_sparsities = METHODS[method]
    scores = [score(kernel) for kernel in kernels]
    if method.startswith("random"):
        ranks = [rng.permutation(layer.size).reshape(layer.shape) for layer in scores]
    else:
        ranks = [rank(layer) for layer in scores]
    for sparsity in sparsities:
        yield list(map(zero_lowest, kernels, ranks, layer_sparsities(kernels, sparsity)))


def compact(kernels):
    """Return the kernels of a smaller dense network that computes the same.

    A unit that no input reaches through weights other than 0, or that reaches no output, is
    deleted with its column and its row; inputs and outputs stay. That is exact for ReLU layers
    without bias, where a unit without incoming weights outputs relu(0) = 0, and in training too,
    if weights of 0 stay 0: the deleted ones would get no gradient.

    kernels: [fan_in, units] each, first to output, unchanged. If no path is left at all, every
    hidden layer keeps one unit, whose weights are 0, since frameworks have no layers without units.
    Raises ValueError unless the kernels have two dimensions and fit each other.
    """
    kernels = [np.asarray(kernel) for kernel in kernels]
    shapes = [kernel.shape for kernel in kernels]
    chained = all(before[-1:] == after[:1] for before, after in zip(shapes, shapes[1:]))
    if {len(shape) for shape in shapes} != {2} or not chained:
        advice = "leave out the output bias; with hidden biases no unit can be deleted exactly"
        raise ValueError(f"not kernels [fan_in, units] of consecutive layers: {shapes}; {advice}")
    live = [kernel != 0 for kernel in kernels]
    pairs = list(zip(live, live[1:]))
    for before, after in pairs:
        after &= before.any(axis=0)[:, np.newaxis]  # reached from the input
    for before, after in reversed(pairs):
        before &= after.any(axis=1)  # reaching the output
    units = [np.flatnonzero(mask.any(axis=0)) if mask.any() else [0] for mask in live[:-1]]
    kept = [range(shapes[0][0]), *units, range(shapes[-1][1])]
    masked = [np.where(mask, kernel, 0) for kernel, mask in zip(kernels, live)]
    return [kernel[np.ix_(*ends)] for kernel, ends in zip(masked, zip(kept, kept[1:]))]


# ----------------------------------------------------------------------------- the experiment


def draws(seed, run, purpose):
    """Make a random generator for a purpose, so that no option changes what another draws."""
    return np.random.default_rng([seed, run, *purpose.encode()])


def pruned_networks(dense, options, rng_for):
    """Yield a network pruned by each method at each sparsity, each after a dict that says how."""
    *hidden, output, bias = dense
    for method in progress(options.methods, unit="method"):
        levels = prune(hidden, method, options.sparsities, rng_for(method))
        for sparsity, kernels in zip(options.sparsities, levels):
            kept = sum(map(np.count_nonzero, kernels)) / count_weights(hidden)
            made = {"method": method, "sparsity": sparsity, "retrain_epochs": 0}
            yield made | {"achieved_sparsity": 1 - kept}, [*compact([*kernels, output]), bias]


def make_networks(sizes, data, options, run):
    """Train a dense network; yield every network made from it, each after a dict that says how.

    The first is the dense network, which every method has at sparsity 0. Pruned networks are
    retrained compacted. Those without the smallest neurons are joined by fresh ones of their sizes,
    "scratch", trained for as many epochs in all.
    """
    rng_for = functools.partial(draws, options.seed, run)
    images, labels, extra = data.train_images, data.train_labels, options.retrain_epochs

    def learn(network, epochs, purpose):
        return train(network, images, labels, epochs, options, rng_for(purpose))

    dense = learn(initial_network(sizes, rng_for("init")), options.epochs, "dense")
    dense_retrained = learn(dense, extra, "dense again")
    for made, pruned in pruned_networks(dense, options, rng_for):
        yield made, pruned
        if extra == 0:
            continue
        method, sparsity = made["method"], made["sparsity"]
        purpose = f"{method} {sparsity}"
        retrained = learn(pruned, extra, purpose) if sparsity > 0 else dense_retrained
        made = made | {"retrain_epochs": extra}
        yield made, retrained
        if method == "neuron":
            purpose = f"scratch {sparsity}"
            fresh = initial_network(layer_sizes(pruned[:-1]), rng_for(f"init {purpose}"))
            epochs = options.epochs + extra
            scratch = learn(fresh, epochs, purpose) if sparsity > 0 else dense_retrained
            yield made | {"method": "scratch"}, scratch


def evaluate(logits, labels):
    """Accuracy in [0, 1] and mean cross-entropy in nats of logits [n, classes]."""
    logits = logits.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return np.mean(logits.argmax(axis=1) == labels), losses.mean()


def measure(network, dense, data):
    """Measure a network, made from a dense one, on the test set; the README has the columns."""
    *kernels, bias = network
    hidden, dense_weights = kernels[:-1], count_weights(dense[:-2])
    logits = compiled(unbiased_logits)(kernels, data.test_images).numpy()
    accuracy, loss = evaluate(logits + bias, data.test_labels)
    unbiased_accuracy, _ = evaluate(logits, data.test_labels)
    return {
        "test_accuracy": accuracy,
        "unbiased_accuracy": unbiased_accuracy,
        "test_loss": loss,
        "live_fraction": sum(map(np.count_nonzero, hidden)) / dense_weights,
        "stored_fraction": count_weights(hidden) / dense_weights,
        "layer_sizes": "-".join(map(str, layer_sizes(kernels))),
    }


def time_networks(networks, images):
    """Time a pass over `images` for networks by name; return the best seconds of each.

    Every round visits every network once, so that changes in the machine's speed affect all alike.
    """
    kernels = {name: list(map(tf.constant, networks[name][:-1])) for name in networks}
    seconds = dict.fromkeys(networks, math.inf)
    for _ in range(TIMING_ROUNDS):
        for name in networks:
            began = time.perf_counter()
            compiled(unbiased_logits)(kernels[name], images)
            tf.test.experimental.sync_devices()  # waits for a GPU, without copying the result
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def measure_networks(networks, data):
    """Measure networks, each after a dict of how it was made, the dense one first.

    Returns a row for each network, and the neuron-pruned networks by sparsity in their final state.
    Only the layer sizes decide how fast a network is, so each of them is timed once.
    """
    rows, of_sizes, of_neurons, dense = [], {}, {}, None
    for made, network in networks:
        dense = dense or network
        row = made | measure(network, dense, data)
        rows.append(row)
        of_sizes.setdefault(row["layer_sizes"], network)
        if made["method"] == "neuron":
            of_neurons[made["sparsity"]] = network
    seconds = time_networks(of_sizes, data.test_images)
    for row in rows:
        row["speedup"] = seconds[rows[0]["layer_sizes"]] / seconds[row["layer_sizes"]]
    return rows, of_neurons


def run_dataset(arrays, options, device, bar):
    """Run the experiment on one data set; write the results after every run."""
    data = on_device(arrays)
    title, path = TITLES.get(data.name, data.name), options.output_dir / f"{data.name}.csv"
    sizes = [data.train_images.shape[1], *options.hidden_units, int(arrays.train_labels.max()) + 1]
    settings = {name: getattr(options, name) for name in SETTINGS} | {"device": device}
    settings["versions"] = f"tensorflow {tf.__version__}, numpy {np.__version__}"
    rows = []
    for run in range(options.runs):
        began = time.monotonic()
        name = f"{title}, run {run + 1} of {options.runs}"
        bar.set_description_str(name)
        measured, of_neurons = measure_networks(make_networks(sizes, data, options, run), data)
        compiled.cache_clear()  # or the graphs of all sizes of all runs would stay in memory
        rows += [{"dataset": data.name, "run": run, "seed": options.seed} | row for row in measured]
        write_results(path, rows, settings)
        if options.save_models and run == 0:
            save_models(path, of_neurons)
        bar.update()
        accuracy, seconds = measured[0]["test_accuracy"], time.monotonic() - began
        say(f"{name}: dense test accuracy {accuracy:.4f}, {seconds:.0f} s, saved in {path}")
    say(f"\n{title}: test accuracy, mean \u00b1 standard deviation\n{table(rows)}\n")


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
    layers = tf.keras.layers
    pixels, *hidden, classes = layer_sizes(network[:-1])
    dense = [layers.Dense(units, "relu", use_bias=False) for units in hidden]
    model = tf.keras.Sequential([tf.keras.Input([pixels]), *dense, layers.Dense(classes)])
    model.set_weights(network)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])  # SGD keeps no state to save
    return model


def save_models(path, networks):
    """Save networks by sparsity as Keras models beside a CSV file."""
    for sparsity, network in networks.items():
        with replacing(path.with_name(f"{path.stem}-neuron-{sparsity}.keras")) as temporary:
            keras_model(network).save(temporary)


def write_results(path, rows, settings):
    """Write rows, and the settings that all have in common, to a CSV file; draw its figures."""
    import pandas

    with replacing(path) as temporary:
        frame = pandas.DataFrame(rows).round(DECIMALS).assign(**settings)
        frame.to_csv(temporary, index=False, lineterminator="\n")
    draw_figures(path)


def table(rows):
    """Lay out mean and standard deviation over runs of test accuracy, a line per sparsity."""
    import pandas

    levels = ["retrain_epochs", "sparsity", "method"]
    accuracy = pandas.DataFrame(rows).groupby(levels, sort=False)["test_accuracy"]
    spread = accuracy.std().map(" \u00b1 {:.4f}".format).replace(" \u00b1 nan", "")
    cells = (accuracy.mean().map("{:.4f}".format) + spread).unstack(fill_value="")
    return cells.rename_axis(columns=None).sort_index().to_string()


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


def draw(ax, rows, x, y, methods=STYLES, faint=False):
    """Draw column y against column x, a share in %: mean, spread and single runs of each method.

    faint: only the mean, thin.
    """
    for method in methods:
        chosen = rows[rows["method"] == method]
        if chosen.empty:
            continue
        label, color, marker, line = STYLES[method]
        mean_x = chosen.groupby("sparsity")[x].mean()
        runs = chosen.pivot(index="sparsity", columns="run", values=y)
        mean, deviation = runs.mean(axis=1), runs.std(axis=1)  # NaN for a single run: no band
        if faint:
            ax.plot(mean_x, mean, ls=line, color=color, lw=0.8, label=label)
            continue
        width = 1 if method.startswith("random") else 2
        ax.fill_between(mean_x, mean - deviation, mean + deviation, color=color, alpha=0.2, lw=0)
        ax.plot(mean_x, runs, lw=0.5, color=color, alpha=0.2)
        look = {"ls": line, "lw": width, "marker": marker, "ms": 2.5 * width, "zorder": 2 + width}
        ax.plot(mean_x, mean, color=color, label=label, **look)
    ax.grid(color="#dddddd", lw=0.6)
    ax.set_xscale("log", nonpositive="mask")  # where nothing is left, nothing is drawn
    least = rows.loc[rows[x] > 0, x].min()
    ax.set_xlim(120, np.clip(least, 0.1, 1) / 1.2)  # ends between 1 and 0.1 %
    set_log_ticks(ax.xaxis, lambda kept, position: f"{1 - kept / 100:.6g}")
    ax.set(xlabel="sparsity", ylabel="test accuracy", ylim=(0, 1.02))


def set_log_ticks(axis, label):
    """Put ticks at 1, 2, 5, 10 and so on along a logarithmic axis.

    label: a format string of x, or a function of the value and its position.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(label)


def draw_reproduction(figure, rows):
    """Draw accuracy against sparsity, with a close-up of the dense accuracy; return the title."""
    figure.set_size_inches(5.4, 6.8)
    close, whole = figure.subplots(2, height_ratios=(2, 5))
    rows = rows[rows["retrain_epochs"] == 0]
    reference = rows.loc[rows["sparsity"] == 0, "test_accuracy"].mean()
    chance = 1 / int(rows["layer_sizes"].iloc[0].rpartition("-")[2])
    shown = [method for method in STYLES if method != "matched_weight"]
    for ax in (close, whole):
        draw(ax, rows, "kept", "test_accuracy", shown)
        ax.axhline(reference, color="black", lw=0.8, label=f"dense network: {reference:.3f}")
        ax.axhline(chance, color="black", lw=0.8, ls=(0, (1, 3)), label=f"chance: {chance:.3g}")
    whole.set(xlabel="sparsity (logarithmic in the share kept)", yticks=np.linspace(0, 1, 11))
    close.set(xlabel="weights or neurons kept, %", ylabel="close-up")
    close.set_ylim(reference - 0.05, reference + 0.01)
    close.xaxis.tick_top()
    close.xaxis.set_label_position("top")
    set_log_ticks(close.xaxis, "{x:g}")
    return "accuracy after one-shot pruning"


def draw_analysis(figure, rows):
    """Draw what explains the reproduction, a question a panel; return the title."""
    one_shot, retrained = rows[rows["retrain_epochs"] == 0], rows[rows["retrain_epochs"] > 0]
    height, width = (1, 3) if retrained.empty else (2, 2)  # panels
    figure.set_size_inches(3.8 * width, 3.3 * height + 1)
    live, unbiased, speed, *again = figure.subplots(height, width).flat
    not_random = [method for method in STYLES if not method.startswith("random")]
    draw(live, one_shot, "live", "test_accuracy", not_random)
    live.set(
        title="Does the number of live weights decide?", xlabel="weights that can act (live), %"
    )
    set_log_ticks(live.xaxis, "{x:g}")
    draw(unbiased, one_shot, "kept", "test_accuracy", faint=True)
    draw(unbiased, one_shot, "kept", "unbiased_accuracy")
    unbiased.set(title="Is the output bias to blame?", ylabel="accuracy without it (thin: with it)")
    draw(speed, one_shot, "kept", "speedup", ("weight", "neuron"))
    speed.set(title="Are the networks faster?", ylabel="speed-up over dense", yscale="log")
    speed.set_ylim(one_shot["speedup"].min() / 1.2, 1.2 * max(one_shot["speedup"].max(), 2))
    set_log_ticks(speed.yaxis, "{x:g}x")
    for ax in again:
        draw(ax, retrained, "kept", "test_accuracy")
        ax.set_title(f"Does retraining help? (epochs: {rows['retrain_epochs'].max()})")
    return "what pruning breaks"


def add_texts(figure, title, rows):
    """Add title, legend, and what was run in small print, so that a picture can stand alone."""
    row, inches = rows.iloc[0], figure.get_figwidth()
    caption = (
        f"{row['layer_sizes']} with ReLU; epochs of Adam: {row['epochs']}, at a rate of "
        f"{row['learning_rate']:g}, batches of {row['batch_size']}. Mean, standard "
        f"deviation (band) and single runs (pale); runs: {rows['run'].nunique()}, seed: "
        f"{row['seed']}. {row['device']}; {row['versions']}."
    )
    figure.supxlabel(textwrap.fill(caption, round(17 * inches)), fontsize=7, color="#444444")
    axes = figure.axes
    lines = {line.get_label(): line for ax in axes for line in ax.get_legend_handles_labels()[0]}
    layout = {"ncols": int(inches / 2.5), "loc": "outside upper center", "frameon": False}
    figure.legend(handles=[*lines.values()], title=title, title_fontsize="large", **layout)


def draw_figures(path):
    """Draw the figures of a CSV file beside it, as PNGs."""
    import pandas
    from matplotlib.figure import Figure

    rows = pandas.read_csv(path).sort_values("sparsity", kind="stable")  # the dense network first
    rows["kept"], rows["live"] = 100 * (1 - rows["sparsity"]), 100 * rows["live_fraction"]
    name = TITLES.get(rows["dataset"].iloc[0], path.stem)
    for draw_panels, suffix in ((draw_reproduction, ""), (draw_analysis, "-analysis")):
        figure = Figure(dpi=160, layout="constrained")
        title = draw_panels(figure, rows)
        add_texts(figure, f"{name}: {title}", rows)
        image = io.BytesIO()  # drawn before the file is opened, as Ctrl-C would leave that behind
        figure.savefig(image)
        with replacing(path.with_name(f"{path.stem}{suffix}.png")) as temporary:
            temporary.write_bytes(image.getvalue())


# --------------------------------------------------------------------------------------- data


# images [n, height, width] of unsigned bytes and labels [n]; or as `on_device` has them
Dataset = namedtuple("Dataset", "name train_images train_labels test_images test_labels")


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
    if data_dir:
        arrays = [read_idx(data_dir / name / f"{file}-ubyte") for file in IDX_FILES]
    elif name == BUNDLED:
        arrays = load_digits()
    else:
        arrays = download(name)
    dataset = Dataset(name, *arrays)
    check_dataset(dataset, data_dir / name if data_dir else name)
    return dataset


def read_idx(path):
    """Read an IDX file of unsigned bytes, `path` or gzip-compressed `path`.gz, into an array.

    Raises UserError, naming the file, if it is missing or damaged or holds something else.
    """
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        if content[:3] != IDX_BYTES:
            raise ValueError("it does not begin like an IDX file of unsigned bytes")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        advice = "--data-dir is a folder with a folder of IDX files for each of --datasets"
        raise UserError(f"{path} cannot be read as an IDX file: {reason}; {advice}") from error


def download(name):
    """Load the arrays of a data set by keras.datasets, which downloads it once and caches it."""
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train_set, test_set = getattr(tf.keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception for a failed download
        advice = "pass --data-dir, or delete an interrupted download in ~/.keras/datasets"
        raise UserError(f"{name} is unavailable: download failed: {error!r}; {advice}") from error
    return *train_set, *test_set


def load_digits():
    """Load scikit-learn's digits, 1,797 images of 8 x 8; the last 360 are the test set."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images, split = digits.images.astype(np.uint8), len(digits.images) - 360
    return images[:split], digits.target[:split], images[split:], digits.target[split:]


def check_dataset(dataset, source):
    """Raise UserError, naming the files, unless images and labels fit each other."""
    _, train_images, train_labels, test_images, test_labels = dataset
    classes = int(train_labels.max(initial=0)) + 1
    parts = ("train", train_images, train_labels), ("t10k", test_images, test_labels)
    for part, images, labels in parts:
        fitting = images.ndim == 3 and images.shape == labels.shape + train_images.shape[1:]
        if not fitting or not images.any() or labels.max() >= classes or classes < 2:
            raise UserError(
                f"{source}: {part}-images {images.shape} and {part}-labels {labels.shape} up to "
                f"{labels.max(initial=0)}, where training has images {train_images.shape[1:]} and "
                f"{classes} classes; needed are images [n, height, width], not all black, n labels"
            )


def on_device(dataset):
    """Copy a data set to the device; the test labels stay NumPy.

    Images become float32 [n, pixels], divided by the brightest pixel of training; labels, int64.
    """
    name, train_images, train_labels, test_images, test_labels = dataset
    brightest = float(train_images.max())

    def scaled(images):
        return tf.cast(images.reshape(len(images), -1), tf.float32) / brightest

    targets = tf.constant(train_labels, tf.int64)
    return Dataset(name, scaled(train_images), targets, scaled(test_images), test_labels)


# ------------------------------------------------------------------------------- command line

SETTINGS = ("epochs", "batch_size", "learning_rate")  # options that the CSV repeats


def between(kind, low, high):
    """Return an argparse type for numbers of this kind from `low` to `high`, both included."""

    def parse(text):
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return kind(text)

    parse.__name__ = kind.__name__  # for argparse's message on a text that is no number
    return parse


def option_parser():
    """Define the options."""
    share, rate = between(float, 0, 1), between(float, 1e-6, 1e6)
    natural, count = between(int, 0, 2**31 - 1), between(int, 1, 2**31 - 1)
    summary = __doc__.partition("\n")[0] + " Defaults are in parentheses."
    parser = argparse.ArgumentParser(None, "%(prog)s [options]", summary, allow_abbrev=False)
    add = parser.add_argument
    add("--datasets", nargs="+", help="(mnist fashion_mnist), digits, or folders in --data-dir")
    add("--data-dir", type=Path, help="read IDX files from a folder with a folder per data set")
    add("--output-dir", type=Path, default="plots", help="folder to write to (%(default)s)")
    add("--methods", nargs="+", choices=METHODS, metavar="M", help="%(choices)s (not the last)")
    add("--sparsities", nargs="+", type=share, default=SPARSITIES, help="fractions %(default)s")
    add("--retrain-epochs", type=natural, default=0, help="epochs after pruning (%(default)s)")
    add("--runs", type=count, default=RUNS, help="networks per data set (%(default)s)")
    add("--seed", type=natural, default=0, help="seed of all random draws (%(default)s)")
    add("--hidden-units", nargs="+", type=count, default=HIDDEN_UNITS, help="sizes %(default)s")
    add("--epochs", type=count, default=EPOCHS, help="epochs of training (%(default)s)")
    add("--batch-size", type=count, default=BATCH_SIZE, help="images per step (%(default)s)")
    add("--learning-rate", type=rate, default=LEARNING_RATE, help="rate of Adam (%(default)s)")
    add("--save-models", action="store_true", help="save the neuron-pruned networks of one run")
    add("--replot", action="store_true", help="only draw the CSV files of --output-dir again")
    return parser


def parse_options(arguments):
    """Parse the command line; exit with a message if it is wrong."""
    parser = option_parser()
    options = parser.parse_args(arguments)
    options.sparsities = sorted({0.0, *(round(s, DECIMALS) for s in options.sparsities)})
    default = [method for method in METHODS if method != "global_weight"]
    options.methods = list(dict.fromkeys(options.methods or default))
    if options.save_models and "neuron" not in options.methods:
        parser.error("--save-models saves neuron-pruned networks: add neuron to --methods")
    for name in options.datasets or []:
        if not re.fullmatch(r"\w[\w. -]*", name) or not (options.data_dir or name in TITLES):
            parser.error(f"--datasets {name}: not {', '.join(TITLES)}, nor a folder in --data-dir")
    return options


def configure_tensorflow():
    """Import and configure TensorFlow; return the name of the first GPU, or else of the CPU.

    Whatever the device, products are float32 and a seed gives the same network each time.
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
        reason = str(error).strip().rpartition("\n")[2]  # its last line
        raise UserError(f"TensorFlow cannot be imported ({reason}); run {install}") from error
    tf.get_logger().setLevel("ERROR")  # it warns of tracing again, which every new size needs
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
    """Return the processor's name, if the system reports it, else its architecture."""
    with contextlib.suppress(OSError, TypeError):
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
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
    options.output_dir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=options.output_dir).close()  # fails now rather than after training
    device = configure_tensorflow()
    datasets = load_datasets(options.datasets, options.data_dir)
    say(f"device: {device}")
    if device.startswith("CPU") and shutil.which("nvidia-smi"):
        say("TensorFlow does not see the NVIDIA GPU; README.md, On a GPU, says what to install")
    with progress(total=len(datasets) * options.runs, unit="run") as bar:
        try:
            for dataset in datasets:
                run_dataset(dataset, options, device, bar)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            advice = "pass a smaller --batch-size or smaller --hidden-units"
            raise UserError(f"out of memory on the {device}; {advice}") from error


def replot(folder):
    """Draw the figures of all CSV files in a folder again."""
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise UserError(f"there is no CSV file in {folder} (--output-dir)")
    for path in paths:
        try:
            draw_figures(path)
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{path} is not a CSV file of this script: {error!r}") from error
        say(f"drew {path.with_suffix('.png')} and {path.stem}-analysis.png")


def main(arguments=None):
    """Run the experiment; exit with a message and a status other than 0 if that fails."""
    options = parse_options(arguments)
    with contextlib.suppress(AttributeError):  # a notebook's lacks it, and a closed one is None
        sys.stdout.reconfigure(errors="replace")  # characters that it cannot encode
    try:
        if options.replot:
            replot(options.output_dir)
        else:
            run_experiment(options)
    except (UserError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")


if __name__ == "__main__":
    # Ctrl-C ends the process at once; as a KeyboardInterrupt it may wait for TensorFlow or get lost
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()

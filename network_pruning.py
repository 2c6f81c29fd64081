#!/usr/bin/env python3
"""Sparsity-against-accuracy curves of pruned MNIST and Fashion-MNIST classifiers.

Trains dense ReLU networks, removes a growing share of their hidden weights (the smallest in
magnitude) or of their hidden neurons (the smallest in L2 norm) without any further training, and
plots the test accuracy of what is left: mean and spread over several networks, with removal at
random as a control.

    python network_pruning.py             writes a PNG and a CSV per data set to plots/
    python network_pruning.py --help      lists the options

The pruning functions are pure NumPy and take the kernels of any Keras model:

    from network_pruning import prune_neurons, prune_weights
"""

import argparse
import contextlib
import csv
import functools
import gzip
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

# TensorFlow, Keras, Matplotlib and scikit-learn take seconds to import. Only the functions that
# need them import them, so that --help, a wrong option or an import of this file answers at once.

# ---------------------------------------------------------------------------------- constants

HIDDEN_UNITS = (1000, 1000, 500, 200)
EPOCHS = 10
BATCH_SIZE = 128  # images
LEARNING_RATE = 1e-3
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8  # TensorFlow 1's defaults
PRECISIONS = ("float32", "bfloat16")  # of training's matrix products; the rest is float32
RUNS = 3  # networks per data set
SEED = 0
SPARSITIES = (0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)

DOWNLOADED = ("mnist", "fashion_mnist")  # by keras.datasets
EMBEDDED = "digits"  # in scikit-learn
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "scikit-learn digits"}
CLASSES = 10  # of each data set
IDX_FILES = {  # published name: dimensions
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
IDX_UNSIGNED_BYTE = 8  # the header's code for the type of the elements
IDX_LIMIT = 2**30  # bytes; MNIST's largest file unpacks to 47 million
DOWNLOAD_TIMEOUT = 10  # seconds without a sign of life
DIGITS_SPLIT = dict(test_size=0.2, random_state=0)  # the same for every seed, so that runs compare

FAILED_LOSS = 2 * math.log(CLASSES)  # twice that of guessing; untrained networks are below
SECONDS_PER_CALL = 0.5  # of training, between two returns to Python
FIRST_CALL_BATCHES = 8  # before the speed is known

TIMED_PASSES = 3  # over the test set, for each speed-up

DECIMALS = 6  # of the CSV; the table and the plot show the same rounded values
FIGURE_INCHES, FIGURE_DPI = (8, 8.5), 150
LABEL_INCHES = 0.3  # room for a label of the sparsity axis
# Blue and orange differ in hue for every kind of colour vision and in lightness when printed in
# grey; the controls are pale and thin.
METHODS = {
    "weight": dict(label="weights of smallest magnitude", color="#00508f", marker="o"),
    "neuron": dict(label="neurons of smallest L2 norm", color="#e07b00", marker="s", ls="--"),
    "random_weight": dict(label="weights at random", color="#777777", marker="o", ls=":"),
    "random_neuron": dict(label="neurons at random", color="#aaaaaa", marker="s", ls=":"),
}


class UserError(Exception):
    """Something the user can mend. The message is one line: the culprit and the cure."""

    status = 1  # of the process


class OptionError(UserError):
    """A wrong option on the command line."""

    status = 2


# --------------------------------------------------------------------------------------- data


class Dataset(NamedTuple):
    """Images [n, height, width] of unsigned bytes up to `white`, and their labels [n]."""

    name: str
    source: str
    white: int
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_datasets(names, data_dir):
    """Load the named data sets; where none is named, MNIST and Fashion-MNIST.

    Only if nothing is named and neither of these can be downloaded, the embedded digits stand in.
    Raises UserError for a data set that cannot be had.
    """
    if names or data_dir:
        return [load_dataset(name, data_dir) for name in dict.fromkeys(names or DOWNLOADED)]
    loaded, failures = [], []
    for name in DOWNLOADED:
        try:
            loaded.append(load_dataset(name, data_dir))
        except UserError as error:
            failures.append(error)
    if loaded and failures:
        raise UserError(f"{failures[0]}; or pass --datasets {loaded[0].name} to run without it")
    if failures:
        print(f"{failures[0]}\nUsing the embedded {EMBEDDED} instead.", file=sys.stderr)
    return loaded or [load_dataset(EMBEDDED, data_dir)]


def load_dataset(name, data_dir):
    """Load one data set, from the IDX files below `data_dir` if given, and check it."""
    if name == EMBEDDED:
        dataset = load_digits()
    elif data_dir:
        arrays = [read_idx(find_idx(data_dir / name, file), IDX_FILES[file]) for file in IDX_FILES]
        dataset = Dataset(name, str(data_dir / name), 255, *arrays)
    else:
        dataset = download(name)
    check_dataset(dataset)
    return dataset


def find_idx(folder, file):
    """Return the path of an IDX file in `folder`, compressed or plain."""
    for path in (folder / f"{file}.gz", folder / file):
        if path.exists():
            return path
    raise UserError(f"{folder / file}.gz is missing, and so is the file without .gz")


def read_idx(path, dimensions):
    """Read an IDX file of unsigned bytes, gzip-compressed if its name ends in .gz.

    Returns a uint8 array of that many dimensions. Reads no more than the header promises. Raises
    UserError, naming the file, if it is damaged or holds something else.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            magic, header = file.read(4), file.read(4 * dimensions)
            shape = np.frombuffer(header, ">u4", count=len(header) // 4).tolist()
            size = math.prod(shape)
            if magic != bytes((0, 0, IDX_UNSIGNED_BYTE, dimensions)) or len(shape) < dimensions:
                raise UserError(f"{path} is no IDX file of bytes in {dimensions} dimension(s)")
            if size > IDX_LIMIT:
                raise UserError(f"{path} promises {size} bytes of data, more than {IDX_LIMIT}")
            data = file.read(size + 1)  # one more, to find out whether the file ends there
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(data) != size:
        found = "more" if len(data) > size else len(data)
        raise UserError(f"{path} promises {size} bytes of data but holds {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def download(name):
    """Load a data set by keras.datasets, which downloads it once and caches it."""
    import keras

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # what Keras raises for a failed download
        check_cache(name)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} cannot be downloaded ({reason}); if you have its files, pass --data-dir DIR "
            f"with DIR/{name}/{next(iter(IDX_FILES))}.gz and so on"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return Dataset(name, "keras.datasets", 255, *train, *test)


def check_cache(name):
    """Raise UserError if Keras holds a damaged file of a data set, as a killed download leaves.

    Of MNIST, unlike Fashion-MNIST, Keras knows a check sum: it replaces a damaged file itself.
    """
    cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"
    for file, dimensions in IDX_FILES.items():
        path = cache / name.replace("_", "-") / f"{file}.gz"
        if path.exists():
            try:
                read_idx(path, dimensions)
            except UserError as error:
                raise UserError(f"{error}; delete this file to have it downloaded anew") from error


def load_digits():
    """Load the handwritten digits that ship inside scikit-learn, 1,797 images of 8 x 8."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target
    parts = train_test_split(images, labels, stratify=labels, **DIGITS_SPLIT)
    return Dataset(EMBEDDED, "scikit-learn", 16, *parts[::2], *parts[1::2])


def check_dataset(dataset):
    """Raise UserError unless images and labels fit each other and the network."""
    for images, labels in (dataset[3:5], dataset[5:]):
        if images.size == 0:
            problem = "an empty set"
        elif len(images) != len(labels):
            problem = f"{len(images)} images but {len(labels)} labels"
        elif labels.max() >= CLASSES:
            problem = f"a label {labels.max()}, above {CLASSES - 1}"
        elif images.shape[1:] != dataset.train_images.shape[1:]:
            problem = f"test images of another shape, {images.shape[1:]}, than in training"
        else:
            continue
        raise UserError(f"{dataset.name} from {dataset.source} has {problem}")


def check_batch_size(batch_size, datasets):
    """Raise OptionError if a batch would be larger than a training set."""
    for dataset in datasets:
        if batch_size > (images := len(dataset.train_images)):
            raise OptionError(f"--batch-size {batch_size}: {dataset.name} has only {images} images")


# ------------------------------------------------------------------------------------ pruning
# NumPy in, NumPy out. The weights or units of a kernel are ranked once, the least important
# first; every level of sparsity then removes the head of that ranking.


def prune_weights(kernel, sparsity):
    """Return a copy of a kernel with its weights of smallest magnitude set to 0.

    One-shot magnitude pruning (Han et al. 2015, "Learning both Weights and Connections for
    Efficient Neural Networks"). Exactly `round(sparsity * kernel.size)` weights are removed, as by
    torch.nn.utils.prune; of equal ones the first in C order go first. A higher sparsity removes a
    superset of what a lower one removes.

    kernel: [fan_in, units], or [..., units] as in a convolution, finite. sparsity: a fraction in
    [0, 1]. Raises ValueError for anything else.
    """
    kernel = check_prunable(kernel, sparsity)
    return zero_lowest(kernel, rank(np.abs(kernel)), sparsity)


def prune_neurons(kernel, sparsity):
    """Return a copy of a kernel with its units of smallest L2 norm set to 0.

    A unit's norm is that of its incoming weights, which all go with it (Li et al. 2017, "Pruning
    Filters for Efficient ConvNets", there with the L1 norm). Exactly `round(sparsity * units)`
    units are removed; of equal ones the first go first. A higher sparsity removes a superset of
    what a lower one removes. A removed unit that has a bias still outputs a constant: set its bias
    to 0 as well.

    kernel: [fan_in, units], or [..., units] as in a convolution, finite. sparsity: a fraction in
    [0, 1]. Raises ValueError for anything else.
    """
    kernel = check_prunable(kernel, sparsity)
    return zero_lowest(kernel, rank(unit_norms(kernel)), sparsity)


def check_prunable(kernel, sparsity):
    """Return `kernel` as an array; raise ValueError if it or `sparsity` is unfit for pruning."""
    kernel = np.asarray(kernel)
    if kernel.ndim < 2:
        raise ValueError(f"a kernel has shape [fan_in, units], not {list(kernel.shape)}")
    if not np.isfinite(kernel).all():
        raise ValueError("the kernel has weights that are not finite")
    if not 0 <= sparsity <= 1:  # true of nan as well
        raise ValueError(f"sparsity is a fraction in [0, 1], not {sparsity}")
    return kernel


def unit_norms(kernel):
    """L2 norm of each unit's incoming weights, [units]."""
    # float64, in which the squares of float32 weights neither overflow nor vanish
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), axis=0)


def rank(scores):
    """Place of each score in ascending order, from 0; of equal scores the first comes first."""
    places = np.empty(scores.size, np.int64)
    places[np.argsort(scores, axis=None, kind="stable")] = np.arange(scores.size)
    return places.reshape(scores.shape)


def zero_lowest(kernel, ranks, sparsity):
    """Copy a kernel [..., units] with the `round(sparsity * ranks.size)` lowest ranks set to 0.

    ranks: a permutation of 0, 1, 2, ... in the shape of the kernel to remove weights, or [units].
    """
    return np.where(ranks >= round(sparsity * ranks.size), kernel, kernel.dtype.type(0))


def rank_for(method, kernel, rng):
    """Rank what one of METHODS removes from a kernel; see `zero_lowest`."""
    if method == "weight":
        return rank(np.abs(kernel))
    if method == "neuron":
        return rank(unit_norms(kernel))
    # the controls remove as many weights or units, in random order
    shape = kernel.shape if method == "random_weight" else kernel.shape[-1:]
    return rng.permutation(math.prod(shape)).reshape(shape)


def compact(kernels):
    """Return the kernels of a smaller dense network that computes the same.

    A unit that no input reaches through weights other than 0, or that reaches no output, is
    deleted with its column and its row; inputs and outputs stay. That is exact for ReLU layers
    without bias, where a unit without incoming weights outputs relu(0) = 0. With a bias it would
    output a constant, which deletion would lose.

    kernels: [fan_in, units] each, first to output, unchanged. A layer may be left with no unit.
    Raises ValueError for hidden biases and for kernels that do not chain.
    """
    kernels = [np.asarray(kernel) for kernel in kernels]
    shapes = [kernel.shape for kernel in kernels]
    if any(len(shape) != 2 for shape in shapes) or any(
        before[1] != after[0] for before, after in zip(shapes, shapes[1:])
    ):
        raise ValueError(
            "compact takes kernels [fan_in, units] that chain, and no hidden biases, with which a "
            f"unit outputs a constant even without inputs; it was given the shapes {shapes}"
        )
    present = [kernel != 0 for kernel in kernels]
    reached, useful = [np.ones(kernels[0].shape[0], bool)], [np.ones(kernels[-1].shape[1], bool)]
    for weights in present:
        reached.append(weights[reached[-1]].any(axis=0))
    for weights in reversed(present):
        useful.insert(0, weights[:, useful[0]].any(axis=1))
    kept = [r & u for r, u in zip(reached, useful)]
    kept[0][:] = kept[-1][:] = True  # inputs and outputs
    return [kernel[np.ix_(*ends)] for kernel, ends in zip(kernels, zip(kept, kept[1:]))]


# ------------------------------------------------------------------------------------- device


@contextlib.contextmanager
def quietly():
    """Hide what TensorFlow logs while it starts, unless the user chose its log level.

    Some lines come before TensorFlow looks at that level, so stderr itself is set aside.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@quietly()
def set_up_device():
    """Ready TensorFlow on the first GPU, or else the CPU, and return its name.

    Whatever the device, float32 products are float32 and a seed gives the same network each time.
    """
    # oneDNN's products are the faster ones, also on CPUs where TensorFlow would not choose them
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)  # rounds to 10 bits
    tf.config.threading.set_inter_op_parallelism_threads(1)  # the work is one chain of products
    gpus = tf.config.list_physical_devices("GPU")[:1]
    if not gpus:
        return f"CPU, {cpu_name()}"
    tf.config.set_visible_devices(gpus, "GPU")
    tf.config.experimental.set_memory_growth(gpus[0], True)
    details = tf.config.experimental.get_device_details(gpus[0])
    return f"GPU, {details.get('device_name', 'unnamed')}"


def cpu_name():
    """Return the processor's name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def idle_gpu():
    """Return the name of this machine's NVIDIA GPU, or "" if it has none or it is hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.partition("\n")[0].strip()
    return ""


def announce(datasets, device):
    """Print what is about to be used and, for a GPU that TensorFlow cannot use, the cure."""
    import tensorflow as tf

    for dataset in datasets:
        sizes = f"{len(dataset.train_images)} training and {len(dataset.test_images)} test images"
        print(f"data: {TITLES[dataset.name]} from {dataset.source}, {sizes}")
    print(f"device: {device}", flush=True)
    if not device.startswith("GPU") and (gpu := idle_gpu()):
        cure = f'{sys.executable} -m pip install "tensorflow[and-cuda]=={tf.__version__}"'
        print(f"TensorFlow cannot use the GPU, {gpu}. To mend it: {cure}", file=sys.stderr)


# ------------------------------------------------------------------------------------ network


class Network(NamedTuple):
    """Kernels [fan_in, units] from first to output, and the output layer's bias [classes].

    Hidden layers have no bias: a unit without incoming weights outputs 0, it really is gone.
    """

    kernels: list
    bias: np.ndarray


def glorot_uniform(rng, fan_in, units):
    """Draw a float32 kernel [fan_in, units] (Glorot and Bengio 2010)."""
    limit = math.sqrt(6 / (fan_in + units))
    return rng.uniform(-limit, limit, (fan_in, units)).astype(np.float32)


def initial_parameters(sizes, rng):
    """Make the variables of `train_batches` for layers of these sizes, the images' first."""
    import tensorflow as tf

    kernels = [glorot_uniform(rng, *shape) for shape in zip(sizes, sizes[1:])]
    values = [*kernels, np.zeros(CLASSES, np.float32)]
    return [[tf.Variable(start) for start in (value, 0 * value, 0 * value)] for value in values]


def on_device(network):
    """Copy a network of NumPy arrays to the device, as tensors."""
    import tensorflow as tf

    return Network([tf.constant(kernel) for kernel in network.kernels], tf.constant(network.bias))


def scaled(images, white):
    """Copy images [n, height, width] to the device, as a float32 tensor [n, pixels] in [0, 1]."""
    import tensorflow as tf

    return tf.cast(images.reshape(len(images), -1), tf.float32) / white


def logits(network, images):
    """Logits [n, classes] of a network for images [n, pixels]."""
    import tensorflow as tf

    *hidden, output = network.kernels
    for kernel in hidden:
        images = tf.nn.relu(tf.matmul(images, kernel))
    return tf.matmul(images, output) + network.bias


def cross_entropy(outputs, labels):
    """Losses [n] in nats of logits [n, classes], and their gradients [n, classes]."""
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        return tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=outputs, labels=labels)
    # on a GPU that operation refuses to run where determinism is asked for
    targets, log_probabilities = tf.one_hot(labels, CLASSES), tf.nn.log_softmax(outputs)
    return -tf.reduce_sum(targets * log_probabilities, axis=1), tf.exp(log_probabilities) - targets


# ----------------------------------------------------------------------------------- training
# Three things make it nearly as fast as its matrix products. The loop over batches runs inside
# TensorFlow and returns only twice a second, for the progress bar and Ctrl-C; on a fast GPU that is
# after a whole epoch. Adam is TensorFlow's one fused operation, where that of Keras 3 is a chain of
# small ones. And backpropagation is spelt out, which lets a kernel be updated while its gradient is
# still in the processor's cache.


@functools.cache
def compiled_training():
    """Return `train_batches`, which TensorFlow traces once for each shape of network and data."""
    import tensorflow as tf

    def update(parameter, gradient, settings):
        var, m, v = (variable.handle for variable in parameter)
        gradient = tf.cast(gradient, tf.float32)
        tf.raw_ops.ResourceApplyAdam(var=var, m=m, v=v, grad=gradient, **settings)

    @tf.function
    def train_batches(parameters, images, labels, order, batches, earlier, batch_size, rate):
        """Train on the batches numbered batches[0] to batches[1] - 1 of an epoch's `order`.

        parameters: of each kernel, and at last the bias, the variable itself and Adam's two
        moments. The images' type is that of the matrix products. earlier: steps before this
        epoch. Returns the mean loss.
        """
        total = 0.0
        for number in tf.range(batches[0], batches[1]):
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)  # they are a chain
            step = tf.cast(earlier + number + 1, tf.float32)
            beta1, beta2 = ADAM_BETAS
            settings = dict(beta1=beta1, beta2=beta2, epsilon=ADAM_EPSILON, lr=rate)
            settings |= dict(beta1_power=beta1**step, beta2_power=beta2**step)
            batch = order[number * batch_size : (number + 1) * batch_size]
            kernels = [tf.cast(kernel, images.dtype) for kernel, *_ in parameters[:-1]]
            inputs = [tf.gather(images, batch)]  # of each layer
            for kernel in kernels[:-1]:
                inputs.append(tf.nn.relu(tf.matmul(inputs[-1], kernel)))
            outputs = tf.cast(tf.matmul(inputs[-1], kernels[-1]), tf.float32) + parameters[-1][0]
            losses, errors = cross_entropy(outputs, tf.gather(labels, batch))
            errors /= tf.cast(tf.size(batch), tf.float32)  # the loss is the mean over the batch
            update(parameters[-1], tf.reduce_sum(errors, axis=0), settings)
            errors = tf.cast(errors, images.dtype)
            for layer in reversed(range(len(kernels))):
                gradient = tf.matmul(inputs[layer], errors, transpose_a=True)
                if layer > 0:
                    errors = tf.matmul(errors, kernels[layer], transpose_b=True)
                    errors = tf.raw_ops.ReluGrad(gradients=errors, features=inputs[layer])
                with tf.control_dependencies([errors]):  # which still needs the kernel as it was
                    update(parameters[layer], gradient, settings)
            total += tf.reduce_mean(losses)
        return total / tf.cast(batches[1] - batches[0], tf.float32)

    return train_batches


def train(images, labels, recipe, rng):
    """Train a Network by Adam on softmax cross-entropy; an epoch is a permutation of the images.

    images: tensor [n, pixels] in [0, 1], float32 or bfloat16, which then is the precision of the
    matrix products. labels: tensor [n] of int64. recipe: has hidden_units, epochs, batch_size and
    learning_rate. rng: draws initial kernels and data order. Raises UserError when the loss is no
    longer finite, or in the end far above that of guessing.
    """
    import keras
    import tensorflow as tf

    parameters = initial_parameters([images.shape[1], *recipe.hidden_units, CLASSES], rng)
    # tensors, since TensorFlow would trace the loop anew for every new Python number
    settings = tf.constant(recipe.batch_size), tf.constant(recipe.learning_rate)
    batches = math.ceil(len(images) / recipe.batch_size)  # in an epoch
    steps, done, span = recipe.epochs * batches, 0, FIRST_CALL_BATCHES
    # on a terminal a bar that moves, elsewhere one line at the end
    bar = keras.utils.Progbar(steps, verbose=2 - sys.stdout.isatty(), stateful_metrics=["loss"])
    while done < steps:
        epoch, first = divmod(done, batches)
        if first == 0:
            order = tf.constant(rng.permutation(len(images)))
        last = min(first + span, batches)
        place = order, tf.constant([first, last]), tf.constant(done - first)
        began = time.perf_counter()
        loss = float(compiled_training()(parameters, images, labels, *place, *settings))
        span = max(1, int(SECONDS_PER_CALL * (last - first) / (time.perf_counter() - began)))
        done += last - first
        if not math.isfinite(loss) or (done == steps and loss > FAILED_LOSS):
            raise UserError(
                f"training failed in epoch {epoch + 1}: the loss is {loss:g}; "
                f"pass a --learning-rate below {recipe.learning_rate:g}"
            )
        bar.update(done, [("loss", loss)])
    *kernels, bias = (variable.numpy() for variable, *_ in parameters)
    return Network(kernels, bias)


# -------------------------------------------------------------------------------------- sweep


def evaluate(outputs, labels):
    """Accuracy in [0, 1] and mean cross-entropy loss in nats of logits [n, classes]."""
    outputs = outputs.astype(np.float64)
    outputs -= outputs.max(axis=1, keepdims=True)  # keeps exp from overflowing
    losses = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(len(labels)), labels]
    return np.mean(outputs.argmax(axis=1) == labels), losses.mean()


def timed_logits(network, dense, images):
    """Logits of `network` for all `images` at once, and its speed-up over the dense network.

    After a warm-up, whose logits these are, the two networks take turns, so that a change of the
    machine's pace meets both; the best of TIMED_PASSES counts for each.
    """
    outputs, seconds = logits(network, images).numpy(), []
    for timed in (dense, network) * TIMED_PASSES:
        began = time.perf_counter()
        logits(timed, images).numpy()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return outputs, min(seconds[::2]) / min(seconds[1::2])


def measure(network, pruned, dense, images, labels):
    """Measure a network whose hidden kernels are `pruned`; see `sweep`.

    It is run compacted: that its accuracy is right shows that compaction changes nothing.
    """
    weights = sum(kernel.size for kernel in pruned)
    kernels = compact([*pruned, network.kernels[-1]])
    small = on_device(Network(kernels, network.bias))
    outputs, speedup = timed_logits(small, dense, images)
    accuracy, loss = evaluate(outputs, labels)
    measured = {
        "achieved_sparsity": 1 - sum(map(np.count_nonzero, pruned)) / weights,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "live_fraction": sum(map(np.count_nonzero, kernels[:-1])) / weights,
        "stored_fraction": sum(kernel.size for kernel in kernels[:-1]) / weights,
        "speedup": speedup,
    }
    return {name: round(float(value), DECIMALS) for name, value in measured.items()}


def sweep(network, images, labels, sparsities, rng):
    """Prune a network by each method to each sparsity and measure what is left.

    Every level starts from the trained kernels. The output kernel stays whole: its units are the
    classes. images: tensor [n, pixels]. labels: array [n]. rng: draws the controls.

    Returns one dict per method and sparsity. Of all hidden weights, achieved_sparsity is the share
    that is 0, live_fraction the share that can still influence the output (not 0, reached from the
    input, reaching the output) and stored_fraction the share that the compacted network holds.
    speedup is the dense network's time for the test set over that of the compacted one.
    """
    dense, hidden, rows = on_device(network), network.kernels[:-1], []
    if not np.isfinite(logits(dense, images)).all():  # the last step may have made it so
        raise UserError("training failed in its last step: pass a lower --learning-rate")
    for method in METHODS:
        ranks = [rank_for(method, kernel, rng) for kernel in hidden]
        for sparsity in sparsities:
            pruned = [zero_lowest(*pair, sparsity) for pair in zip(hidden, ranks)]
            measured = measure(network, pruned, dense, images, labels)
            rows.append({"method": method, "sparsity": sparsity, **measured})
    return rows


def save_models(folder, name, network, sparsities):
    """Save a network and its neuron-pruned, compacted versions as .keras files; return the paths.

    They take images [n, pixels] in [0, 1], return logits, and load without this file.
    """
    *hidden, output = network.kernels
    models = {folder / f"{name}-dense.keras": network.kernels}
    for sparsity in sparsities:
        pruned = [prune_neurons(kernel, sparsity) for kernel in hidden]
        level = str(sparsity).removesuffix(".0")
        models[folder / f"{name}-neuron-{level}.keras"] = compact([*pruned, output])
    for path, kernels in models.items():
        with replacing(path) as temporary:
            keras_model(Network(kernels, network.bias)).save(temporary)
    return list(models)


def keras_model(network):
    """Build a keras.Sequential of a network.

    Keras has no layer without units: a layer that lost all gets one whose weights are 0.
    """
    import keras

    *hidden, output = [np.pad(k, [(0, not n) for n in k.shape]) for k in network.kernels]
    layers = [keras.layers.Dense(k.shape[1], "relu", use_bias=False) for k in hidden]
    layers.append(keras.layers.Dense(output.shape[1]))
    model = keras.Sequential([keras.Input(network.kernels[0].shape[:1]), *layers])
    model.set_weights([*hidden, output, network.bias])
    return model


# ------------------------------------------------------------------------------------ results


@contextlib.contextmanager
def replacing(path):
    """Yield a path to write to, whose file takes the place of `path` only once it is whole.

    Raises UserError if it cannot be written; whatever happens, the file at `path` is a whole one.
    """
    try:
        # a folder of its own: another process may be writing the same file
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            yield Path(folder, path.name)
            os.replace(Path(folder, path.name), path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_csv(path, rows):
    """Write the rows, one per run, method and sparsity, under their column names."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def levels_of(rows):
    """Return the sparsities of the rows in ascending order."""
    return sorted({row["sparsity"] for row in rows})


def summarise(rows, method, column):
    """Mean and sample standard deviation over the runs of one method's column, [levels] each.

    The standard deviation of a single run is given as 0.
    """
    values = [row[column] for row in rows if row["method"] == method]
    runs = np.reshape(values, (-1, len(levels_of(rows))))
    return runs.mean(axis=0), runs.std(axis=0, ddof=int(len(runs) > 1))


def table(rows):
    """Lay out mean test accuracy and its standard deviation, a line per sparsity."""
    lines = ["sparsity" + "".join(f"{method:>18}" for method in METHODS)]
    columns = [zip(*summarise(rows, method, "test_accuracy")) for method in METHODS]
    for sparsity, *cells in zip(levels_of(rows), *columns):
        texts = (f"{mean:.4f} \u00b1 {deviation:.4f}" for mean, deviation in cells)
        lines.append(f"{sparsity:<8g}" + "".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)


def axis_positions(levels):
    """Place sparsities on an axis that is logarithmic in the share kept, 1 - sparsity.

    So the decade from 0.9 to 0.99, where curves fall, gets as much room as that from 0 to 0.9. A
    sparsity of 1, which keeps nothing, goes half a decade beyond the others.
    """
    kept = 1 - np.array(levels)
    return -np.log10(np.where(kept > 0, kept, kept[kept > 0].min(initial=1) / 10**0.5))


def label_levels(axis, levels):
    """Label the sparsity axis at the levels, from the right, as far as there is room."""
    positions = axis_positions(levels)
    width = axis.get_position().width * axis.figure.get_figwidth()  # inches
    room, labelled = LABEL_INCHES / width * np.ptp(positions), []
    for position, level in sorted(zip(positions, levels), reverse=True):
        if not labelled or labelled[-1][0] - position >= room:
            labelled.append((position, f"{level:g}"))
    axis.set_xticks(*zip(*labelled))


def draw_curves(axis, rows, column, places):
    """Draw the mean of a column and a band of one standard deviation about it, for each method.

    places: from a method to its levels' places on the x axis; those that are nan are left out.
    """
    for method, style in METHODS.items():
        mean, deviation = summarise(rows, method, column)
        low, high = mean - deviation, mean + deviation
        control = method.startswith("random")
        axis.fill_between(places(method), low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.plot(places(method), mean, lw=1 if control else 2, ms=3 if control else 6, **style)
        if not control:
            axis.vlines(places(method), low, high, color=style["color"], linewidth=1)
    axis.grid(color="#dddddd", linewidth=0.6)


def draw_accuracy(axis, rows):
    """Draw test accuracy against sparsity, the reproduction."""
    levels = levels_of(rows)
    draw_curves(axis, rows, "test_accuracy", lambda method: axis_positions(levels))
    if levels[0] == 0:
        dense = summarise(rows, "weight", "test_accuracy")[0][0]
        axis.axhline(dense, color="black", linewidth=0.8, label=f"dense network: {dense:.3f}")
    label_levels(axis, levels)
    axis.set(ylim=(0, 1.02), yticks=np.linspace(0, 1, 11), ylabel="test accuracy")
    axis.set_xlabel("sparsity: share of the weights, or neurons, removed from each hidden layer")


def draw_accuracy_by_live_weights(axis, rows):
    """Draw test accuracy against the share of hidden weights that can still act: like for like."""

    def places(method):
        live = summarise(rows, method, "live_fraction")[0]
        return np.where(live > 0, live, np.nan)  # a logarithmic axis has no place for 0

    draw_curves(axis, rows, "test_accuracy", places)
    axis.set(xscale="log", ylim=(0, 1.02), ylabel="test accuracy")
    axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    if any(row["live_fraction"] for row in rows):
        axis.invert_xaxis()
    else:
        axis.set_xlim(1, 0.01)  # there is nothing to choose the range by
    axis.set_xlabel("hidden weights that can still act")


def draw_speedup(axis, rows):
    """Draw the measured speed-up of the compacted networks against sparsity."""
    levels = levels_of(rows)
    axis.axhline(1, color="black", linewidth=0.8)
    draw_curves(axis, rows, "speedup", lambda method: axis_positions(levels))
    label_levels(axis, levels)
    axis.set(yscale="log", xlabel="sparsity", ylabel="speed-up, dense = 1x")
    axis.yaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}x")


def plot(path, title, caption, rows):
    """Draw the rows of one data set, with `caption` in small print below, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(FIGURE_INCHES, FIGURE_DPI, layout="constrained")
    axes = figure.subplot_mosaic([["accuracy"] * 2, ["live", "speed"]], height_ratios=(3, 2))
    draw_accuracy(axes["accuracy"], rows)
    draw_accuracy_by_live_weights(axes["live"], rows)
    draw_speedup(axes["speed"], rows)
    handles = axes["accuracy"].get_legend_handles_labels()
    top = dict(loc="outside upper center", ncols=3, frameon=False)
    figure.legend(*handles, title=title, title_fontsize="x-large", **top)
    figure.supxlabel(caption, fontsize=7, color="#444444")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def describe(dataset, options, device, runs):
    """Say what was run, so that a picture that travels alone still tells."""
    import tensorflow as tf

    sizes = math.prod(dataset.train_images.shape[1:]), *options.hidden_units, CLASSES
    return (
        f"{'-'.join(map(str, sizes))} with ReLU; {options.epochs} epochs of Adam at "
        f"{options.learning_rate:g}, batches of {options.batch_size}, {options.precision}; pruned "
        f"layer by layer in one shot, not retrained\nmean \u00b1 standard deviation over runs: "
        f"{runs}, seed: {options.seed}; {device}; "
        f"tensorflow {tf.__version__}, numpy {np.__version__}"
    )


def write_results(dataset, options, device, rows):
    """Write the rows and their picture; return the paths."""
    picture, numbers = (options.output_dir / f"{dataset.name}.{kind}" for kind in ("png", "csv"))
    write_csv(numbers, rows)
    runs = rows[-1]["run"] + 1
    plot(picture, TITLES[dataset.name], describe(dataset, options, device, runs), rows)
    return [picture, numbers]


# ------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that leaves errors to `main`."""

    def error(self, message):
        """Raise OptionError."""
        raise OptionError(message)


def checked(kind, accepts, meaning):
    """Make an option's type: text to a value of that kind, refused unless `accepts` takes it."""

    def parse(text):
        with contextlib.suppress(ValueError, OSError):
            if accepts(kind(text)):
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text} is not {meaning}")

    return parse


def build_parser():
    """Build the parser of the command line."""
    fraction = checked(float, lambda value: 0 <= value <= 1, "a fraction in [0, 1]")
    count = checked(int, lambda value: 0 < value < 2**31, "a whole number from 1 to 2147483647")
    natural = checked(int, lambda value: value >= 0, "a whole number of 0 or more")
    rate = checked(float, lambda value: 0 < value < 1e38, "a number between 0 and 1e38")
    folder = checked(Path, Path.is_dir, "a directory")
    names = "default: the first two, or if neither can be downloaded digits, which are embedded"
    source = "folder of mnist/ and fashion_mnist/, four IDX files each, instead of a download"
    saved = "also save the first run's dense network and its neuron-pruned, compacted ones"
    products = "of the matrix products in training (default: %(default)s)"
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--datasets", nargs="+", choices=TITLES, help=names)
    parser.add_argument("--data-dir", type=folder, metavar="DIR", help=source)
    parser.add_argument("--save-models", action="store_true", help=saved)
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help=products)
    for option, kind, default, metavar, meaning in (
        ("--output-dir", Path, "plots", "DIR", "folder to write to"),
        ("--sparsities", fraction, SPARSITIES, "S", "fractions to remove, from 0 to 1"),
        ("--runs", count, RUNS, "N", "networks per data set"),
        ("--seed", natural, SEED, "N", "from which every run's draws derive"),
        ("--hidden-units", count, HIDDEN_UNITS, "N", "units of each hidden layer"),
        ("--epochs", count, EPOCHS, "N", "passes over the training set"),
        ("--batch-size", count, BATCH_SIZE, "N", "images per training step"),
        ("--learning-rate", rate, LEARNING_RATE, "RATE", "of Adam"),
    ):
        several = isinstance(default, tuple)
        shown = " ".join(map(str, default)) if several else default
        settings = dict(type=kind, default=default, metavar=metavar, nargs="+" if several else None)
        parser.add_argument(option, help=f"{meaning} (default: {shown})", **settings)
    return parser


def parse_options(arguments):
    """Parse the command line and ready the output folder; raise OptionError for what is wrong."""
    options = build_parser().parse_args(arguments)
    options.sparsities = sorted({level + 0.0 for level in options.sparsities})  # no -0.0
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output_dir).close()
    except OSError as error:
        culprit = f"--output-dir {options.output_dir}"
        raise OptionError(f"{culprit} cannot be written to: {error}") from error
    return options


def interrupt(signal_number, frame):
    """Handle Ctrl-C and SIGTERM alike: Keras then removes a partial download as well."""
    raise KeyboardInterrupt(signal_number)


def run_dataset(dataset, options, device):
    """Train, prune and evaluate on one data set; write the results after every run."""
    import tensorflow as tf

    train_images = tf.cast(scaled(dataset.train_images, dataset.white), options.precision)
    test_images = scaled(dataset.test_images, dataset.white)
    train_labels = tf.constant(dataset.train_labels, tf.int64)
    rows, saved, rng = [], [], np.random.default_rng(options.seed)
    for run in range(options.runs):
        print(f"{TITLES[dataset.name]}, run {run + 1} of {options.runs}", flush=True)
        training_rng, control_rng = rng.spawn(1)[0].spawn(2)
        network = train(train_images, train_labels, options, training_rng)
        evaluated = test_images, dataset.test_labels, options.sparsities, control_rng
        for row in sweep(network, *evaluated):
            rows.append({"dataset": dataset.name, "run": run, "seed": options.seed, **row})
        # in a thread of its own, which Ctrl-C leaves to finish what it has begun
        with ThreadPoolExecutor() as writer:
            written = writer.submit(write_results, dataset, options, device, rows).result()
        if options.save_models and run == 0:
            saved = save_models(options.output_dir, dataset.name, network, options.sparsities)
    print(f"\n{TITLES[dataset.name]}: test accuracy, mean \u00b1 standard deviation\n{table(rows)}")
    print("\nwritten:", *written, *saved, "\n", flush=True)


def main(arguments=None):
    """Run the experiment and return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        options = parse_options(arguments)
        device = set_up_device()
        datasets = load_datasets(options.datasets, options.data_dir)
        check_batch_size(options.batch_size, datasets)
        announce(datasets, device)
        for dataset in datasets:
            run_dataset(dataset, options, device)
    except (UserError, MemoryError) as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return getattr(error, "status", 1)
    except KeyboardInterrupt as interruption:
        print("\ninterrupted; the results of finished runs are kept", file=sys.stderr, flush=True)
        # at once: an orderly end of TensorFlow takes about a second
        os._exit(128 + interruption.args[0])
    except BrokenPipeError:  # as of `| head`
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

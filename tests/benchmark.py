"""How long the job, training and repairs take, beside their peers.

    python tests/benchmark.py --data-dir DIR

Prints medians of interleaved repeats, on the GPU where TensorFlow sees one, and the same numbers
as ratios taken within each repeat, since a machine's pace drifts. Let nothing else run meanwhile.
PyTorch takes part where it is installed. Without --data-dir, Keras downloads the data.
"""

import argparse
import functools
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "plots" / "published"))
import controls

import network_pruning as project

DEVICE = project.configure_tensorflow()
tf, keras = project.tf, project.keras
sys.modules["triton"] = None  # PyTorch's; its LLVM and TensorFlow's end a process that loads both

PARTS = ("job", "training", "repairs", "sparse")
OPTIONS = project.parse_options([])  # the recipe
SIZES = [784, *OPTIONS.hidden_units, 10]
BATCH_SIZE = OPTIONS.batch_size
METHODS = {**project.METHODS, **controls.METHODS}
RNG = np.random.default_rng(0)
COMPACTED = 0.8  # sparsity of the neuron-pruned network whose retraining is timed
MASKED = 0.9  # that of the weight-pruned one
REPAIRED = 0.95  # that of the one whose repairs are timed


def dense_network():
    """Draw an untrained network."""
    return project.new_network(SIZES, RNG)


def tensors(network):
    """Copy the kernels of a network to the device."""
    return [tf.constant(kernel) for kernel in network.kernels]


def timed(work):
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -------------------------------------------------------------------------------------- training


def products(batches):
    """Return work that does the matrix products of training on batches, and nothing else.

    Each product reads the one before, and each gradient is read, or TensorFlow would skip it.
    """
    kernels = tensors(dense_network())
    images = tf.random.uniform((BATCH_SIZE, SIZES[0]))

    @tf.function
    def loop(batches):
        read = 0.0
        for _ in tf.range(batches):
            inputs = [images + read]
            for kernel in kernels:
                inputs.append(tf.matmul(inputs[-1], kernel))
            errors = inputs.pop()
            for layer in reversed(range(len(kernels))):
                gradient = tf.matmul(inputs[layer], errors, transpose_a=True)
                read += 1e-30 * gradient[0, 0]
                if layer > 0:
                    errors = tf.matmul(errors, kernels[layer], transpose_b=True)
        return read

    return lambda: loop(tf.constant(batches)).numpy()


def updates(batches):
    """Return work that does the fused Adam updates of training on batches, and nothing else."""
    network = dense_network()
    variables = [tf.Variable(values) for values in (*network.kernels, network.bias)]
    gradients = [0.01 * variable for variable in variables]
    adam = tf.compat.v1.train.AdamOptimizer(OPTIONS.learning_rate)

    @tf.function
    def loop(batches):
        for _ in tf.range(batches):
            adam.apply_gradients(zip(gradients, variables))
        return variables[0][0, 0]

    return lambda: loop(tf.constant(batches)).numpy()


def train(network, data, batches, epochs):
    """Train a network on some batches as the script does."""
    count = batches * BATCH_SIZE
    images, targets = data.train_images[:count], data.train_targets[:count]
    some = data._replace(train_images=images, train_targets=targets)
    return project.train(network, some, epochs, OPTIONS, RNG)


def forward(network, images):
    """Logits of images."""
    return project.logits(network, project.layer_inputs(network.hidden, images)[-1])


def this_project(batches, data, network):
    """Return work that trains on batches, with their share of what a whole training traces."""
    share = batches * BATCH_SIZE / (len(data.train_images) * OPTIONS.epochs)

    def work():
        once = timed(lambda: train(network, data, batches, 1))
        seconds = timed(lambda: train(network, data, batches, 2)) - once
        tracing = once - seconds
        return seconds + share * tracing

    return work


def pruned_network(method, sparsity):
    """Prune an untrained network and compact it."""
    dense = dense_network()
    hidden = METHODS[method](dense.hidden, (), sparsity, RNG)
    return project.network_of([*project.compact([*hidden, dense.output]), dense.bias])


def labels(data):
    """Labels of the training set."""
    return data.train_targets.numpy().argmax(axis=1)


def keras_fit(batches, data):
    """Return work that trains the same network on batches by keras.Model.fit at its defaults."""
    model = project.keras_model(dense_network())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(OPTIONS.learning_rate), loss)
    some = batches * BATCH_SIZE
    pixels, classes = data.train_images.numpy()[:some], labels(data)[:some]
    return lambda: model.fit(pixels, classes, batch_size=BATCH_SIZE, verbose=0)


def original(batches, data):
    """Return work that trains on batches as scripts of 2019 do: a graph, fed batch by batch."""
    v1 = tf.compat.v1
    pixels, classes = data.train_images.numpy(), labels(data)
    with tf.Graph().as_default():
        inputs = v1.placeholder(tf.float32, [None, SIZES[0]])
        targets = v1.placeholder(tf.int64, [None])
        kernels = [tf.Variable(kernel) for kernel in dense_network().kernels]
        network = project.network_of([*kernels, tf.Variable(tf.zeros(SIZES[-1]))])
        logits = forward(network, inputs)
        loss = v1.losses.sparse_softmax_cross_entropy(targets, logits)
        step = v1.train.AdamOptimizer(OPTIONS.learning_rate).minimize(loss)
        session = v1.Session()
        session.run(v1.global_variables_initializer())

    def loop():
        for _ in range(batches):
            batch = RNG.integers(0, len(pixels), BATCH_SIZE)
            session.run(step, {inputs: pixels[batch], targets: classes[batch]})

    return loop


def pytorch(batches, data):
    """Return work that trains the same network on batches in PyTorch, by its fused Adam."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = torch.tensor(data.train_images.numpy(), device=device)
    classes = torch.tensor(labels(data), device=device)
    shapes = list(zip(SIZES, SIZES[1:]))
    layers = [torch.nn.Linear(*shape, bias=shape == shapes[-1]) for shape in shapes]
    activations = [torch.nn.ReLU() for _ in shapes]
    model = torch.nn.Sequential(*sum(zip(layers, activations), ())[:-1]).to(device)
    adam = torch.optim.Adam(model.parameters(), OPTIONS.learning_rate, fused=True)

    def loop():
        order = torch.randperm(len(pixels), device=device)
        for batch in order.split(BATCH_SIZE)[:batches]:
            adam.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(pixels[batch]), classes[batch])
            loss.backward()
            adam.step()
        return loss.item()  # waits for the device

    return loop


def benchmark_training(repeats, batches, data):
    """Print seconds per epoch and ratios to the floor, products and updates each on their own."""
    small = pruned_network("neuron", COMPACTED)
    weights = [sum(kernel.size for kernel in net.kernels) for net in (small, dense_network())]
    works = {
        "matrix products alone": clocked(products(batches)),
        "Adam updates alone": clocked(updates(batches)),
        "this project": this_project(batches, data, dense_network()),
        "retraining, masked": this_project(batches, data, pruned_network("weight", MASKED)),
        f"retraining, {weights[0] / weights[1]:.0%} of the size": this_project(
            batches, data, small
        ),
        "keras.Model.fit": clocked(keras_fit(batches, data)),
        "a TensorFlow 1 graph, fed": clocked(original(batches, data)),
    }
    if importlib.util.find_spec("torch"):
        works["PyTorch, fused Adam"] = clocked(pytorch(batches, data))
    for work in works.values():  # traces and warms up
        work()
    epoch = len(data.train_images) / (batches * BATCH_SIZE)
    runs = [{name: epoch * work() for name, work in works.items()} for _ in range(repeats)]
    for run in runs:
        run["the floor: both"] = run["matrix products alone"] + run["Adam updates alone"]
    title = f"training, medians of {repeats}"
    print(f"\n{title:32}{'s/epoch':>10}{'of floor':>10}{'of ours':>10}")
    for name in runs[0]:
        cells = [statistics.median(run[name] for run in runs)]
        for other in ("the floor: both", "this project"):
            cells.append(statistics.median(run[name] / run[other] for run in runs))
        print(f"{name:32}" + "".join(f"{cell:10.3f}" for cell in cells))


def clocked(work):
    """Return work that times other work."""
    return lambda: timed(work)


# -------------------------------------------------------------------------- repairs, sparse, job


def benchmark_repairs(repeats, network, data):
    """Print how long it takes to prune a trained network and to repair it, in several ways."""
    images = data.train_images[: OPTIONS.refit_images].numpy()
    inputs = [np.asarray(received) for received in project.layer_inputs(network.hidden, images)]
    outputs = [received @ kernel for received, kernel in zip(inputs, network.kernels)]

    def prune(method):
        hidden = METHODS[method](network.hidden, inputs[:-1], REPAIRED, RNG)
        kernels = [*hidden, network.output]
        targets = [
            output[:, live] for output, live in zip(outputs, project.live_units(kernels)[1:])
        ]
        return project.network_of([*project.compact(kernels), network.bias]), images, targets

    works = {
        "magnitude, refit": lambda: project.refit_all(*prune("weight")),
        "magnitude × input, refit": lambda: project.refit_all(*prune("scaled_weight")),
        "SparseGPT": lambda: prune("sparsegpt"),
        "gradual × input": lambda: prune("gradual_scaled"),
        "magnitude, distilled": lambda: controls.distilled(*prune("weight")),
        "gradual × input, distilled": lambda: controls.distilled(*prune("gradual_scaled")),
        "magnitude, retrained, 1 epoch": lambda: train(
            prune("weight")[0], data, len(data.train_images) // BATCH_SIZE, 1
        ),
    }
    print(f"\n{f'sparsity {REPAIRED}, medians of {repeats}':32}{'s':>10}{'of refit':>10}")
    seconds = {}
    for name, work in works.items():
        work()  # warms up; not interleaved, since TensorFlow's threads stay busy for a while
        seconds[name] = statistics.median(timed(work) for _ in range(repeats))
        ratio = seconds[name] / seconds["magnitude, refit"]
        print(f"{name:32}{seconds[name]:10.2f}{ratio:10.1f}")


def benchmark_sparse(network, data, repeats=5):
    """Print the speed-up of weight-pruned networks that are run as sparse matrices, on the CPU."""
    with tf.device("CPU"):  # the sparse product has no deterministic GPU kernel
        images = tf.identity(data.test_images)
        columns = tf.transpose(images)
        kernels = tensors(network)
        dense = project.network_of([*kernels, network.bias])
        print("\nspeed-up over the dense network if zeros are skipped, on the CPU:")
        for level in (0.9, 0.95, 0.97, 0.99):
            hidden = [project.prune_weights(kernel, level).T for kernel in network.hidden]
            sparse = [tf.sparse.from_dense(kernel) for kernel in hidden]

            def run_sparse(sparse=sparse):
                activations = columns
                for kernel in sparse:
                    activations = tf.nn.relu(tf.sparse.sparse_dense_matmul(kernel, activations))
                return tf.matmul(activations, kernels[-1], transpose_a=True).numpy()

            run_sparse()
            ratios = [
                timed(lambda: forward(dense, images).numpy()) / timed(run_sparse)
                for _ in range(repeats)
            ]
            print(f"  sparsity {level:g}: {statistics.median(ratios):.2f}x")


def benchmark_job(data_dir):
    """Print the time and the memory of the whole job with one seed on both data sets.

    Also that of a method added to its folder, and of the original's two methods alone.
    """
    command = [sys.executable, project.__file__, "--seeds", "0"]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    for jobs in (["", "--methods gradual_scaled"], ["--methods weight neuron"]):
        with tempfile.TemporaryDirectory() as folder:
            for changes in jobs:
                job = [*command, "--output-dir", folder, *changes.split()]
                run = functools.partial(subprocess.run, job, check=True, capture_output=True)
                print(f"--seeds 0 {changes}: {timed(run):.0f} s")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory: {peak:.2f} GiB")


def main():
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="as that of network_pruning.py")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, default=60, help="timed at once (default: 60)")
    options = parser.parse_args()
    print(f"{DEVICE}; TensorFlow {tf.__version__}, Keras {keras.__version__}\n")
    if "job" in options.parts:  # first: the peak of a process starts at its parent's size
        benchmark_job(options.data_dir)
    data = project.load_dataset("mnist", options.data_dir)
    if "training" in options.parts:
        benchmark_training(options.repeats, options.batches, data)
    network = train(dense_network(), data, len(data.train_images) // BATCH_SIZE, 1)
    if "repairs" in options.parts:
        benchmark_repairs(options.repeats, network, data)
    if "sparse" in options.parts:
        benchmark_sparse(network, data)


if __name__ == "__main__":
    main()

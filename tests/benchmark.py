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

project.configure_tensorflow()
tf, keras = project.tf, project.keras
sys.modules["triton"] = None  # PyTorch's; its LLVM and TensorFlow's end a process that loads both

PARTS = ("job", "training", "repairs", "sparse")
OPTIONS = project.parse_options([])  # the recipe
SIZES = [784, *OPTIONS.hidden_units, 10]
BATCH_SIZE = OPTIONS.batch_size
RNG = np.random.default_rng(0)
COMPACTED = 0.8  # sparsity of the neuron-pruned network whose retraining is timed
MASKED = 0.9  # that of the weight-pruned one
REPAIRED = 0.95  # that of the one whose repairs are timed


def dense_network():
    """Draw an untrained network."""
    return project.new_network(SIZES, RNG)


def timed(work, *arguments):
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


# -------------------------------------------------------------------------------------- training


def products(batches):
    """Return work that does the matrix products of training on batches, and nothing else.

    Each product reads the one before, and each gradient is read, or TensorFlow would skip it.
    """
    kernels = [tf.constant(kernel) for kernel in dense_network().kernels]
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


def forward(network, images):
    """Logits of images."""
    return project.layer_inputs(network.hidden, images)[-1] @ network.output + network.bias


def this_project(batches, data, network):
    """Return work that trains on batches, with their share of what a whole training traces."""
    count = batches * BATCH_SIZE
    images, targets = data.train_images[:count], data.train_targets[:count]
    some = data._replace(train_images=images, train_targets=targets)
    share = count / (len(data.train_images) * OPTIONS.epochs)

    def work():
        once = timed(project.train, network, some, 1, OPTIONS, RNG)
        seconds = timed(project.train, network, some, 2, OPTIONS, RNG) - once
        tracing = once - seconds
        return seconds + share * tracing

    return work


def pruned_network(prune, sparsity):
    """Prune an untrained network and compact it."""
    dense = dense_network()
    hidden = [prune(kernel, sparsity) for kernel in dense.hidden]
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
    small = pruned_network(project.prune_neurons, COMPACTED)
    masked = pruned_network(project.prune_weights, MASKED)
    weights = [sum(kernel.size for kernel in net.kernels) for net in (small, dense_network())]
    smaller = f"retraining, {weights[0] / weights[1]:.0%} of the size"
    works = {
        "matrix products alone": functools.partial(timed, products(batches)),
        "Adam updates alone": functools.partial(timed, updates(batches)),
        "this project": this_project(batches, data, dense_network()),
        "retraining, masked": this_project(batches, data, masked),
        smaller: this_project(batches, data, small),
        "keras.Model.fit": functools.partial(timed, keras_fit(batches, data)),
        "a TensorFlow 1 graph, fed": functools.partial(timed, original(batches, data)),
    }
    if importlib.util.find_spec("torch"):
        works["PyTorch, fused Adam"] = functools.partial(timed, pytorch(batches, data))
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


# -------------------------------------------------------------------------- repairs, sparse, job


def benchmark_repairs(repeats, network, data):
    """Print how long it takes to prune a trained network and to repair it, in several ways."""
    ways = {  # titles: method, repair
        "magnitude, refit": ("weight", "refit"),
        "magnitude × input, refit": ("scaled_weight", "refit"),
        "SparseGPT": ("sparsegpt", "none"),
        "gradual": ("gradual_weight", "none"),
        "gradual × input": ("gradual_scaled", "none"),
        "magnitude, distilled": ("weight", "distilled"),
        "gradual × input, distilled": ("gradual_scaled", "distilled"),
        "magnitude, retrained, 1 epoch": ("weight", "retrain"),
    }
    project.METHODS.update(controls.METHODS)
    options = argparse.Namespace(**vars(OPTIONS) | {"sparsities": [REPAIRED]})

    def work(method, repair):
        project.REPAIRS = {name: f for name, f in controls.REPAIRS.items() if name == repair}
        options.retrain_epochs = int(repair == "retrain")
        return list(project.prune_and_repair(network, data, 0, method, options))

    print(f"\n{f'sparsity {REPAIRED}, medians of {repeats}':32}{'s':>10}{'of refit':>10}")
    seconds = {}
    for name, way in ways.items():
        work(*way)  # warms up; not interleaved, since TensorFlow's threads stay busy for a while
        seconds[name] = statistics.median(timed(work, *way) for _ in range(repeats))
        ratio = seconds[name] / seconds["magnitude, refit"]
        print(f"{name:32}{seconds[name]:10.2f}{ratio:10.1f}")


def benchmark_sparse(network, data, repeats=5):
    """Print the speed-up of weight-pruned networks that are run as sparse matrices, on the CPU."""
    with tf.device("CPU"):  # the sparse product has no deterministic GPU kernel
        images = tf.identity(data.test_images)
        columns = tf.transpose(images)
        dense = project.network_of([tf.constant(a) for a in (*network.kernels, network.bias)])
        print("\nspeed-up over the dense network if zeros are skipped, on the CPU:")
        for level in (0.9, 0.95, 0.97, 0.99):
            hidden = [project.prune_weights(kernel, level).T for kernel in network.hidden]
            sparse = [tf.sparse.from_dense(kernel) for kernel in hidden]

            def run_sparse(sparse=sparse):
                activations = columns
                for kernel in sparse:
                    activations = tf.nn.relu(tf.sparse.sparse_dense_matmul(kernel, activations))
                return tf.matmul(activations, dense.output, transpose_a=True)

            run_sparse()
            ratios = [timed(forward, dense, images) / timed(run_sparse) for _ in range(repeats)]
            print(f"  sparsity {level:g}: {statistics.median(ratios):.2f}x")


def benchmark_job(data_dir):
    """Print the time and memory of the whole job with one seed, then the time of another method."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, project.__file__, "--seeds", "0", "--output-dir", folder]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        run = functools.partial(subprocess.run, check=True, capture_output=True)
        print(f"--seeds 0: {timed(run, command):.0f} s")
        added = timed(run, [*command, "--methods", "matched_weight"])
        print(f"--seeds 0 --methods matched_weight, in the same folder: {added:.0f} s")
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
    print(f"{project.device_name()}; TensorFlow {tf.__version__}, Keras {keras.__version__}\n")
    if "job" in options.parts:  # first: the peak of a process starts at its parent's size
        benchmark_job(options.data_dir)
    data = project.load_dataset("mnist", options.data_dir)
    if "training" in options.parts:
        benchmark_training(options.repeats, options.batches, data)
    network = project.train(dense_network(), data, 1, OPTIONS, RNG)
    if "repairs" in options.parts:
        benchmark_repairs(options.repeats, network, data)
    if "sparse" in options.parts:
        benchmark_sparse(network, data)


if __name__ == "__main__":
    main()

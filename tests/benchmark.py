"""How close training is to what the machine can do, how long a sweep takes, how much memory.

    python tests/benchmark.py

Prints medians of interleaved repeats, on the GPU where TensorFlow sees one, and the same numbers
again as ratios taken within each repeat, since a machine's pace drifts. Random pixels in the
shapes of MNIST stand in for the data: the time does not depend on what they show. PyTorch takes
part where it is installed.
"""

import argparse
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
import network_pruning as project

PLAIN = "--plain" in sys.argv  # has to be known before TensorFlow starts
DEVICE = "TensorFlow's own settings" if PLAIN else project.set_up_device()

import keras
import tensorflow as tf

keras.utils.set_random_seed(0)  # which determinism wants, for fit's shuffling

TRAINING_IMAGES, TEST_IMAGES, PIXELS = 60000, 10000, 784  # MNIST's
SIZES = [PIXELS, *project.HIDDEN_UNITS, project.CLASSES]
RNG = np.random.default_rng(0)


def random_images(images):
    """Draw images of random pixels."""
    return tf.constant(RNG.random((images, PIXELS), dtype=np.float32))


def draw_kernels():
    """Draw the initial kernels of the default network."""
    return [project.glorot_uniform(RNG, *shape) for shape in zip(SIZES, SIZES[1:])]


def timed(work):
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def products(batches):
    """Return work that does the matrix products of training on batches, and nothing else.

    Each product reads the one before, and each gradient is read, or TensorFlow would skip it.
    """
    kernels = [tf.constant(kernel) for kernel in draw_kernels()]
    images = random_images(project.BATCH_SIZE)

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
    arrays = [*draw_kernels(), np.zeros(project.CLASSES, np.float32)]
    slots = [[tf.Variable(values) for values in (a, 0 * a, 0 * a)] for a in arrays]
    gradients = [tf.constant(0.01 * array) for array in arrays]

    @tf.function
    def loop(batches):
        for _ in tf.range(batches):
            for (variable, first, second), gradient in zip(slots, gradients):
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle,
                    m=first.handle,
                    v=second.handle,
                    beta1_power=0.5,
                    beta2_power=0.5,
                    lr=project.LEARNING_RATE,
                    beta1=project.ADAM_BETAS[0],
                    beta2=project.ADAM_BETAS[1],
                    epsilon=project.ADAM_EPSILON,
                    grad=gradient,
                )
        return slots[0][0][0, 0]

    return lambda: loop(tf.constant(batches)).numpy()


def this_project(batches, images, labels, precision):
    """Return work that trains on batches as `network_pruning.train` does."""
    images = tf.cast(images, precision)
    parameters = project.initial_parameters(SIZES, RNG)
    order = tf.constant(RNG.permutation(TRAINING_IMAGES))
    place = order, tf.constant([0, batches]), tf.constant(0)
    settings = tf.constant(project.BATCH_SIZE), tf.constant(project.LEARNING_RATE)
    loop = project.compiled_training()
    return lambda: loop(parameters, images, labels, *place, *settings).numpy()


def keras_fit(batches, images, labels):
    """Return work that trains the same network on batches by keras.Model.fit at its defaults."""
    layers = [keras.layers.Dense(n, "relu", use_bias=False) for n in project.HIDDEN_UNITS]
    model = keras.Sequential([keras.Input((PIXELS,)), *layers, keras.layers.Dense(SIZES[-1])])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(project.LEARNING_RATE), loss)
    some = batches * project.BATCH_SIZE
    pixels, classes = images.numpy()[:some], labels.numpy()[:some]
    return lambda: model.fit(pixels, classes, batch_size=project.BATCH_SIZE, verbose=0)


def original(batches, images, labels):
    """Return work that trains on batches as scripts of 2019 did: a graph, fed batch by batch."""
    v1 = tf.compat.v1
    pixels, classes = images.numpy(), labels.numpy()
    with tf.Graph().as_default():
        inputs = v1.placeholder(tf.float32, [None, PIXELS])
        targets = v1.placeholder(tf.int64, [None])
        kernels = [tf.Variable(kernel) for kernel in draw_kernels()]
        network = project.Network(kernels, tf.Variable(tf.zeros(project.CLASSES)))
        loss = v1.losses.sparse_softmax_cross_entropy(targets, project.logits(network, inputs))
        step = v1.train.AdamOptimizer(project.LEARNING_RATE).minimize(loss)
        session = v1.Session()
        session.run(v1.global_variables_initializer())

    def loop():
        for _ in range(batches):
            batch = RNG.integers(0, TRAINING_IMAGES, project.BATCH_SIZE)
            session.run(step, {inputs: pixels[batch], targets: classes[batch]})

    return loop


def pytorch(batches, images, labels):
    """Return work that trains the same network on batches in PyTorch, by its fused Adam."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels, classes = (torch.tensor(t.numpy(), device=device) for t in (images, labels))
    shapes = list(zip(SIZES, SIZES[1:]))
    layers = [torch.nn.Linear(*shape, bias=shape == shapes[-1]) for shape in shapes]
    activations = [torch.nn.ReLU() for _ in shapes]
    model = torch.nn.Sequential(*sum(zip(layers, activations), ())[:-1]).to(device)
    adam = torch.optim.Adam(model.parameters(), project.LEARNING_RATE, fused=True)

    def loop():
        order = torch.randperm(TRAINING_IMAGES, device=device)
        for batch in order.split(project.BATCH_SIZE)[:batches]:
            adam.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(pixels[batch]), classes[batch])
            loss.backward()
            adam.step()
        return loss.item()  # waits for the device

    return loop


def benchmark_training(repeats, batches):
    """Print seconds per epoch and ratios to the floor, products and updates each on their own."""
    images = random_images(TRAINING_IMAGES)
    labels = tf.constant(RNG.integers(0, project.CLASSES, TRAINING_IMAGES))
    works = {
        "matrix products alone": products(batches),
        "Adam updates alone": updates(batches),
        "this project": this_project(batches, images, labels, "float32"),
        "this project, bfloat16": this_project(batches, images, labels, "bfloat16"),
        "keras.Model.fit": keras_fit(batches, images, labels),
        "a TensorFlow 1 graph, fed": original(batches, images, labels),
    }
    if importlib.util.find_spec("torch"):
        works["PyTorch, fused Adam"] = pytorch(batches, images, labels)
    for work in works.values():  # traces and warms up
        work()
    epoch = TRAINING_IMAGES / (batches * project.BATCH_SIZE)
    runs = [{name: epoch * timed(work) for name, work in works.items()} for _ in range(repeats)]
    for run in runs:
        run["the floor: both"] = run["matrix products alone"] + run["Adam updates alone"]
    print(
        f"{'training, medians of ' + str(repeats):32}{'s/epoch':>10}{'of floor':>10}{'of ours':>10}"
    )
    for name in runs[0]:
        cells = [statistics.median(run[name] for run in runs)]
        for other in ("the floor: both", "this project"):
            cells.append(statistics.median(run[name] / run[other] for run in runs))
        print(f"{name:32}" + "".join(f"{cell:10.3f}" for cell in cells))


def sweep_seconds(levels, test_images):
    """Time a sweep: in all, the part that `timed_logits` takes, and one dense pass."""
    images, labels = random_images(test_images), RNG.integers(0, project.CLASSES, test_images)
    network = project.Network(draw_kernels(), np.zeros(project.CLASSES, np.float32))
    dense, timed_logits, inside = project.on_device(network), project.timed_logits, []
    one_pass = statistics.median(timed(lambda: project.logits(dense, images)) for _ in range(9))

    def watched(*arguments):
        began = time.perf_counter()
        result = timed_logits(*arguments)
        inside.append(time.perf_counter() - began)
        return result

    project.timed_logits = watched
    whole = timed(lambda: project.sweep(network, images, labels, levels, RNG))
    project.timed_logits = timed_logits
    return whole, sum(inside), one_pass


def benchmark_sweep():
    """Print the time of a default sweep in dense passes, and how it grows with the levels."""
    whole, inside, one_pass = sweep_seconds(project.SPARSITIES, TEST_IMAGES)
    rest = whole - inside
    print(f"\nsweep of 10 levels: {whole:.1f} s, of it {inside:.1f} s for speed and accuracy;")
    print(f"the rest, {rest:.2f} s, is {rest / one_pass:.1f} dense passes of {one_pass:.3f} s")
    some, many = ([level / count for level in range(count)] for count in (10, 100))
    small = [sweep_seconds(some, 500)[0] for _ in range(5)]
    large = sweep_seconds(many, 500)[0]
    small += [sweep_seconds(some, 500)[0] for _ in range(5)]
    ratio = large / statistics.mean(small)
    print(f"on 500 images, 100 levels take {ratio:.1f} times as long as 10")


def write_random_data(folder):
    """Write IDX files in the shapes of MNIST and Fashion-MNIST: random pixels and labels."""
    for name in project.DOWNLOADED:
        (folder / name).mkdir()
        for file, dimensions in project.IDX_FILES.items():
            images = TRAINING_IMAGES if file.startswith("train") else TEST_IMAGES
            shape = (images, 28, 28)[:dimensions]
            values = RNG.integers(0, 256 if dimensions == 3 else project.CLASSES, shape, np.uint8)
            magic = bytes((0, 0, project.IDX_UNSIGNED_BYTE, dimensions))
            sizes = np.array(shape, ">u4").tobytes()
            (folder / name / file).write_bytes(magic + sizes + values.tobytes())


def benchmark_memory():
    """Print the peak memory of the script for more and more work, each in its own process."""
    short = ("--epochs", "1", "--sparsities", "0", "0.5")
    jobs = {
        "1 run on 1 data set": ("--runs", "1", "--datasets", "mnist"),
        "3 runs on 2 data sets": ("--runs", "3"),
    }
    print("peak resident memory, at 1 epoch and 2 levels:")
    with tempfile.TemporaryDirectory() as folder:
        write_random_data(Path(folder))
        command = [sys.executable, project.__file__, "--data-dir", folder, "--output-dir", folder]
        for name, job in jobs.items():
            subprocess.run([*command, *short, *job], check=True, capture_output=True)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"  {name}: {peak:.2f} GiB")
    print()


def benchmark_sparse(repeats):
    """Print the speed-up of weight-pruned networks that are run as sparse matrices."""
    images, kernels = random_images(TEST_IMAGES), draw_kernels()
    dense = project.on_device(project.Network(kernels, np.zeros(project.CLASSES, np.float32)))
    columns = tf.transpose(images)
    print("\nspeed-up over the dense network when the zeros are skipped, medians:")
    for level in (0.9, 0.95, 0.97, 0.99):
        hidden = [project.prune_weights(kernel, level).T for kernel in kernels[:-1]]
        sparse = [tf.sparse.from_dense(kernel) for kernel in hidden]

        def run_sparse(sparse=sparse):
            activations = columns
            for kernel in sparse:
                activations = tf.nn.relu(tf.sparse.sparse_dense_matmul(kernel, activations))
            return tf.matmul(activations, kernels[-1], transpose_a=True).numpy()

        run_sparse()
        ratios = [
            timed(lambda: project.logits(dense, images).numpy()) / timed(run_sparse)
            for _ in range(repeats)
        ]
        print(f"  sparsity {level:g}: {statistics.median(ratios):.2f}x")


def main():
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, default=60, help="timed at once (default: 60)")
    parser.add_argument("--plain", action="store_true", help="TensorFlow's own settings for all")
    options = parser.parse_args()
    print(f"{DEVICE}; TensorFlow {tf.__version__}, Keras {keras.__version__}\n")
    benchmark_memory()  # first, since the peak of a new process starts at its parent's size
    benchmark_training(options.repeats, options.batches)
    benchmark_sweep()
    benchmark_sparse(5)


if __name__ == "__main__":
    main()

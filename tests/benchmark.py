"""How long the job takes, and training beside its peers.

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
import network_pruning as project

project.configure_tensorflow()
tf, keras = project.tf, project.keras
sys.modules["triton"] = None  # PyTorch's; its LLVM and TensorFlow's end a process that loads both

PARTS = ("job", "training")
OPTIONS = project.parse_options([])  # the recipe
SIZES = [784, *OPTIONS.hidden_units, 10]
BATCH_SIZE = OPTIONS.batch_size
RNG = np.random.default_rng(0)
COMPACTED = 0.8  # sparsity of the neuron-pruned network whose retraining is timed
MASKED = 0.9  # that of the weight-pruned one


def dense_network():
    """Draw an untrained network."""
    return project.new_network(SIZES, RNG)


def timed(work, *arguments):
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


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
    """Print seconds per epoch, of this project and of others, and ratios to this project's."""
    small = pruned_network(project.prune_neurons, COMPACTED)
    masked = pruned_network(project.prune_weights, MASKED)
    weights = [sum(kernel.size for kernel in net.kernels) for net in (small, dense_network())]
    smaller = f"retraining, {weights[0] / weights[1]:.0%} of the size"
    works = {
        "this project": this_project(batches, data, dense_network()),
        "retraining, masked": this_project(batches, data, masked),
        smaller: this_project(batches, data, small),
        "keras.Model.fit": functools.partial(timed, keras_fit(batches, data)),
    }
    if importlib.util.find_spec("torch"):
        works["PyTorch, fused Adam"] = functools.partial(timed, pytorch(batches, data))
    for work in works.values():  # traces and warms up
        work()
    epoch = len(data.train_images) / (batches * BATCH_SIZE)
    runs = [{name: epoch * work() for name, work in works.items()} for _ in range(repeats)]
    title = f"training, medians of {repeats}"
    print(f"\n{title:32}{'s/epoch':>10}{'of ours':>10}")
    for name in works:
        seconds = statistics.median(run[name] for run in runs)
        ratio = statistics.median(run[name] / run["this project"] for run in runs)
        print(f"{name:32}{seconds:10.3f}{ratio:10.3f}")


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
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="as that of network_pruning.py")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, default=60, help="timed at once (default: 60)")
    options = parser.parse_args()
    print(f"{project.device_name()}; TensorFlow {tf.__version__}, Keras {keras.__version__}\n")
    if "job" in options.parts:  # first: the peak of a process starts at its parent's size
        benchmark_job(options.data_dir)
    if "training" in options.parts:
        data = project.load_dataset("mnist", options.data_dir)
        benchmark_training(options.repeats, options.batches, data)


if __name__ == "__main__":
    main()

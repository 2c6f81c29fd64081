"""Controls: what refitting needs, and what else would do. Prints a CSV.

    python tests/controls.py --data-dir DIR > plots/published/controls.csv

Trains and prunes the networks of network_pruning.py, seed for seed, repairs each in other ways, and
measures its test accuracy. Five seeds take hours on one core; add --seeds to run them apart.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import network_pruning as project

project.configure_tensorflow()
tf = project.tf

PRUNED = {  # method: sparsities
    "weight": (0.95, 0.97),
    "neuron": (0.8, 0.9),
    "matched_weight": (0.8, 0.9),
    "random_weight": (0.8, 0.95),
}
IMAGE_COUNTS = (100, 300, project.REFIT_IMAGES, 5000)
DISTILLATION_EPOCHS = (10, 40)


def rng(seed, purpose):
    """Make the generator that `run_seed` makes for the same purpose."""
    return np.random.default_rng([seed, *purpose.encode()])


def learn(network, images, targets, epochs, generator):
    """Train a network with the settings of the script."""
    size, rate = project.BATCH_SIZE, project.LEARNING_RATE
    return project.train(network, images, targets, epochs, size, rate, generator)


def choose(dataset, count, seed):
    """Choose training images to refit on, as `run_seed` does."""
    chosen = rng(seed, "refit images").choice(len(dataset.train_images), count, replace=False)
    return tf.gather(dataset.train_images, chosen).numpy()


def with_random_values(network, generator):
    """Replace the hidden weights by random ones of the same places and standard deviation."""
    kernels = []
    for kernel in network.hidden:
        values = generator.normal(scale=kernel[kernel != 0].std(), size=kernel.shape)
        kernels.append(np.where(kernel != 0, values, 0).astype(np.float32))
    return network._replace(kernels=[*kernels, network.kernels[-1]])


def with_shuffled_places(network, generator):
    """Shuffle the incoming weights of each hidden unit, zeros and all."""
    kernels = [generator.permuted(kernel, axis=0) for kernel in network.hidden]
    return network._replace(kernels=[*kernels, network.kernels[-1]])


def rescale(network, images, targets):
    """Scale the incoming weights of each unit, so that its output varies as in the dense network.

    Arguments as those of `project.refit_layers`.
    """
    inputs = images
    kernels = []
    for kernel, wanted in zip(network.kernels, targets):
        spread = (inputs @ kernel).std(axis=0)
        kernels.append(
            kernel * np.where(spread > 0, wanted.std(axis=0) / np.maximum(spread, 1e-9), 1)
        )
        inputs = np.maximum(inputs @ kernels[-1], 0)
    return network._replace(kernels=kernels)


def repairs(dense, kernels, dataset, other, seed):
    """Yield (control, images, epochs, network) for each way to repair a network.

    kernels: of the pruned network, not compacted. other: the other data set.
    """
    pruned = dense._replace(kernels=project.compact(kernels))
    units = project.live_units(kernels)[1:]

    def wanted(images):
        outputs = project.layer_outputs(dense, images)
        return [layer[:, live] for layer, live in zip(outputs, units)]

    for count in IMAGE_COUNTS:
        images = choose(dataset, count, seed)
        yield "refit", count, 0, project.refit_layers(pruned, images, wanted(images))
    count = project.REFIT_IMAGES
    foreign = choose(other, count, seed)
    network = project.refit_layers(pruned, foreign, wanted(foreign))
    yield "other_images", count, 0, network

    images = choose(dataset, count, seed)
    targets = wanted(images)
    yield "rescaled", count, 0, rescale(pruned, images, targets)
    random = with_random_values(pruned, rng(seed, "random values"))
    yield "random_values", count, 0, project.refit_output(random, images, targets)
    shuffled = with_shuffled_places(pruned, rng(seed, "shuffled places"))
    yield "shuffled", count, 0, project.refit_layers(shuffled, images, targets)

    teacher = tf.nn.softmax(targets[-1] + dense.bias)
    pixels = tf.constant(images)
    for epochs in DISTILLATION_EPOCHS:
        student = learn(pruned, pixels, teacher, epochs, rng(seed, "distillation"))
        yield "distilled", count, epochs, student
    refit = project.refit_layers(pruned, images, targets)
    epochs = DISTILLATION_EPOCHS[0]
    student = learn(refit, pixels, teacher, epochs, rng(seed, "distillation"))
    yield "refit_distilled", count, epochs, student


def run_controls(dataset, other, seed):
    """Yield a row of the CSV for each pruned network and repair."""
    sizes = (dataset.train_images.shape[1], *project.HIDDEN_UNITS, dataset.train_targets.shape[1])
    dense = project.new_network(sizes, rng(seed, "new dense"))
    images, targets = dataset.train_images, dataset.train_targets
    dense = learn(dense, images, targets, project.EPOCHS, rng(seed, "train dense"))
    for method, sparsities in PRUNED.items():
        ranks = project.METHODS[method].rank(dense.hidden, rng(seed, f"prune {method}"))
        for sparsity in sparsities:
            cutoffs = project.METHODS[method].cutoffs(dense.hidden, ranks, sparsity)
            hidden = map(project.zero_lowest, dense.hidden, ranks, cutoffs)
            kernels = [*hidden, dense.kernels[-1]]
            for control, count, epochs, network in repairs(dense, kernels, dataset, other, seed):
                outputs = project.logits(network, dataset.test_images).numpy()
                accuracy, _ = project.evaluate(outputs, dataset.test_labels)
                yield dataset.name, seed, method, sparsity, control, count, epochs, accuracy


def main():
    """Run the controls on MNIST and Fashion-MNIST."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="as that of network_pruning.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    options = parser.parse_args()
    datasets = project.load_datasets(project.TITLES, options.data_dir)
    print("dataset,seed,method,sparsity,control,images,epochs,test_accuracy")
    for dataset, other in (datasets, reversed(datasets)):
        for seed in options.seeds:
            for *what, accuracy in run_controls(dataset, other, seed):
                print(*what, f"{accuracy:.6f}", sep=",", flush=True)


if __name__ == "__main__":
    main()

"""Controls: what refitting needs, and what else would do. Prints a CSV.

    python tests/controls.py --data-dir DIR > plots/published/controls.csv

Trains and prunes the networks of network_pruning.py, seed for seed, repairs each in other ways, and
measures its test accuracy. Five seeds take about an hour on one core; --seeds runs some of them.
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


def learn(network, images, targets, epochs, generator):
    """Train a network with the settings of the script."""
    size, rate = project.BATCH_SIZE, project.LEARNING_RATE
    return project.train(network, images, targets, epochs, size, rate, generator)


def choose(dataset, count, seed, dense):
    """Choose training images to refit on; return them and the dense network's outputs."""
    images = project.choose_images(dataset.train_images, count, seed)
    return images, project.layer_outputs(dense, images)


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

    Arguments: as for `project.refit_layers`.
    """
    inputs = images
    kernels = []
    for kernel, wanted in zip(network.kernels, targets):
        spread = (inputs @ kernel).std(axis=0)
        factors = np.where(spread > 0, wanted.std(axis=0) / np.maximum(spread, 1e-9), 1)
        kernels.append(kernel * factors)
        inputs = np.maximum(inputs @ kernels[-1], 0)
    return network._replace(kernels=kernels)


def repairs(dense, kernels, samples, foreign, seed):
    """Yield (control, images, epochs, network) for each way to repair a network.

    kernels: of the pruned network, not compacted. samples: from `choose`, by the number of images.
    foreign: one from the other data set.
    """
    pruned = dense._replace(kernels=project.compact(kernels))
    refit = {}  # by the number of images
    for count, (images, outputs) in samples.items():
        targets = project.live_outputs(outputs, kernels)
        refit[count] = project.refit_layers(pruned, images, targets)
        yield "refit", count, 0, refit[count]
    images, outputs = foreign
    targets = project.live_outputs(outputs, kernels)
    count = project.REFIT_IMAGES
    yield "other_images", count, 0, project.refit_layers(pruned, images, targets)

    images, outputs = samples[count]
    targets = project.live_outputs(outputs, kernels)
    yield "rescaled", count, 0, rescale(pruned, images, targets)
    random = with_random_values(pruned, project.rng_for(seed, "random values"))
    yield "random_values", count, 0, project.refit_output(random, images, targets)
    shuffled = with_shuffled_places(pruned, project.rng_for(seed, "shuffled places"))
    yield "shuffled_output", count, 0, project.refit_output(shuffled, images, targets)
    yield "shuffled", count, 0, project.refit_layers(shuffled, images, targets)

    teacher = tf.nn.softmax(targets[-1] + dense.bias)
    pixels = tf.constant(images)

    def distilled(network, epochs):
        return learn(network, pixels, teacher, epochs, project.rng_for(seed, "distillation"))

    for epochs in DISTILLATION_EPOCHS:
        yield "distilled", count, epochs, distilled(pruned, epochs)
    epochs = DISTILLATION_EPOCHS[0]
    yield "refit_distilled", count, epochs, distilled(refit[count], epochs)


def run_controls(dataset, other, seed):
    """Yield a row of the CSV for each pruned network and repair."""
    sizes = (dataset.train_images.shape[1], *project.HIDDEN_UNITS, dataset.train_targets.shape[1])
    dense = project.new_network(sizes, project.rng_for(seed, "new dense"))
    images, targets = dataset.train_images, dataset.train_targets
    dense = learn(dense, images, targets, project.EPOCHS, project.rng_for(seed, "train dense"))
    samples = {count: choose(dataset, count, seed, dense) for count in IMAGE_COUNTS}
    foreign = choose(other, project.REFIT_IMAGES, seed, dense)
    for method, sparsities in PRUNED.items():
        generator = project.rng_for(seed, f"prune {method}")
        ranks = project.METHODS[method].rank(dense.hidden, generator)
        for sparsity in sparsities:
            hidden = project.METHODS[method].prune(dense.hidden, ranks, sparsity)
            kernels = [*hidden, dense.kernels[-1]]
            for control, count, epochs, network in repairs(dense, kernels, samples, foreign, seed):
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

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

OPTIONS = project.parse_options([])  # the settings of the script
PRUNED = {  # method: sparsities
    "weight": (0.95, 0.97),
    "neuron": (0.8, 0.9),
    "matched_weight": (0.8, 0.9),
    "random_weight": (0.8, 0.95),
}
IMAGE_COUNTS = (100, 300, project.REFIT_IMAGES, 5000)
DISTILLATION_EPOCHS = (10, 40)


def choose(dataset, count, seed, dense):
    """Choose training images; return what each layer of the dense network gets and computes."""
    images = project.choose_images(dataset.train_images, count, seed)
    inputs = [np.asarray(received) for received in project.layer_inputs(dense, images)]
    return inputs, project.preactivations(dense, inputs)


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

    def refit(inputs, outputs):
        return project.refit_layers(pruned, inputs[0], project.of_live_units(outputs, kernels))

    refits = {count: refit(*sample) for count, sample in samples.items()}
    for count, network in refits.items():
        yield "refit", count, 0, network
    count = project.REFIT_IMAGES
    yield "other_images", count, 0, refit(*foreign)

    inputs, outputs = samples[count]
    images = inputs[0]
    targets = project.of_live_units(outputs, kernels)
    yield "rescaled", count, 0, rescale(pruned, images, targets)
    random = with_random_values(pruned, project.rng_for(seed, "random values"))
    yield "random_values", count, 0, project.refit_output(random, images, targets)
    shuffled = with_shuffled_places(pruned, project.rng_for(seed, "shuffled places"))
    yield "shuffled_output", count, 0, project.refit_output(shuffled, images, targets)
    yield "shuffled", count, 0, project.refit_layers(shuffled, images, targets)

    teacher = tf.nn.softmax(targets[-1] + dense.bias)
    pixels = tf.constant(images)

    def distilled(network, epochs):
        size, rate = OPTIONS.batch_size, OPTIONS.learning_rate
        rng = project.rng_for(seed, "distillation")
        return project.train(network, pixels, teacher, epochs, size, rate, rng)

    for epochs in DISTILLATION_EPOCHS:
        yield "distilled", count, epochs, distilled(pruned, epochs)
    epochs = DISTILLATION_EPOCHS[0]
    yield "refit_distilled", count, epochs, distilled(refits[count], epochs)


def run_controls(dataset, other, seed):
    """Yield a row of the CSV for each pruned network and repair."""
    dense = project.train_dense(dataset, seed, OPTIONS)
    samples = {count: choose(dataset, count, seed, dense) for count in IMAGE_COUNTS}
    foreign = choose(other, project.REFIT_IMAGES, seed, dense)
    inputs, _ = samples[project.REFIT_IMAGES]
    for method, sparsities in PRUNED.items():
        for sparsity in sparsities:
            rng = project.rng_for(seed, f"prune {method}")
            hidden = project.METHODS[method](dense.hidden, inputs, sparsity, rng)
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

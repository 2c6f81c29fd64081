"""Controls: other methods of pruning, what refitting needs, what else would do. Prints a CSV.

    python tests/controls.py --data-dir DIR > plots/published/controls.csv

Takes the networks of network_pruning.py, seed for seed, from networks/ in --output-dir; those that
are not there are trained. Prunes them by methods that the script does not have, repairs networks
pruned by its own methods in other ways, and measures the test accuracy. --seeds and --datasets run
some of them.
"""

import argparse
import functools
import itertools
import sys
from pathlib import Path

import numpy as np
from scipy import linalg

sys.path.insert(0, str(Path(__file__).parents[1]))
import network_pruning as project

project.configure_tensorflow()
tf = project.tf

REFIT_IMAGES = project.parse_options([]).refit_images
DATASETS = (*project.TITLES, "digits")
OTHERS = {"mnist": "fashion_mnist", "fashion_mnist": "mnist"}  # whose images are tried, too
LEVELS = (0.9, 0.95, 0.97, 0.99)  # at which methods are compared
PRUNED = {  # method: sparsities
    "weight": LEVELS,
    "scaled_weight": (0.99,),
    "neuron": (0.8, 0.9),
    "random_weight": (0.8, 0.95),
}
IMAGE_COUNTS = (100, 300, REFIT_IMAGES, 5000)
DISTILLATION_EPOCHS = (10, 40)
REFITS = len(project.SPARSITIES)  # as often as gradual pruning refits until 0.99


# ---------------------------------------------------------------------------------------- methods


def by_unit(kernel, scores, sparsity):
    """Set the weights of the lowest scores to 0, as many in each unit; scores: [fan_in, units]."""
    units = zip(kernel.T, scores.T)
    return np.stack([project.zero_lowest(*unit, sparsity) for unit in units], axis=1)


def weight_by_unit(kernels, inputs, sparsity, rng):
    """Remove the weights of smallest magnitude in each unit."""
    return [by_unit(kernel, np.abs(kernel), sparsity) for kernel in kernels]


def wanda(kernel, inputs, sparsity):
    """Remove the weights of smallest magnitude times the L2 norm of their input in each unit.

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    norms = np.linalg.norm(inputs, axis=0)
    return by_unit(kernel, np.abs(kernel) * norms[:, np.newaxis], sparsity)


def scaled_by_unit(kernels, inputs, sparsity, rng):
    """Prune by `wanda`, but on the inputs in the dense network, as `scaled_weight` does."""
    return [wanda(kernel, received, sparsity) for kernel, received in zip(kernels, inputs)]


def sparsegpt(kernel, inputs, sparsity, block=128, damping=0.01):
    """Return a copy of a kernel, pruned by SparseGPT: weights are removed and updated in one pass.

    Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
    One-Shot". Goes through the inputs in blocks. In each block, the weights go whose removal costs
    least by the inverse Hessian of the layer's squared error, and the weights on later inputs make
    up for each. What it aims at are the outputs of this kernel on these inputs.

    kernel: [fan_in, units]. inputs: [n, fan_in]. sparsity: below 1. damping: relative to the mean
    of the Hessian's diagonal.
    """
    weights = kernel.astype(np.float64)
    hessian = inputs.T.astype(np.float64) @ inputs
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weights[dead] = 0
    hessian += damping * hessian.diagonal().mean() * np.eye(len(hessian))
    factor = linalg.cholesky(linalg.inv(hessian))  # upper triangular
    for first in range(0, len(weights), block):
        rows = slice(first, min(first + block, len(weights)))
        costs = (weights[rows] / factor.diagonal()[rows, np.newaxis]) ** 2
        removed = costs <= np.sort(costs, axis=None)[int(sparsity * costs.size)]
        errors = np.zeros_like(costs)
        for i, row in enumerate(range(rows.start, rows.stop)):
            errors[i] = np.where(removed[i], weights[row], 0) / factor[row, row]
            weights[row : rows.stop] -= np.outer(factor[row, row : rows.stop], errors[i])
            weights[row, removed[i]] = 0  # up to rounding it is already
        weights[rows.stop :] -= factor[rows, rows.stop :].T @ errors
    return weights.astype(kernel.dtype)


def layer_by_layer(prune):
    """Make a method that prunes each layer on the outputs of the layers pruned before it."""

    def method(kernels, inputs, sparsity, rng):
        received = inputs[0]
        pruned = []
        for kernel in kernels:
            pruned.append(prune(kernel, received, sparsity))
            received = np.maximum(received @ pruned[-1], 0)
        return pruned

    return method


METHODS = {
    "weight_by_unit": weight_by_unit,
    "scaled_by_unit": scaled_by_unit,
    "wanda": layer_by_layer(wanda),
    "sparsegpt": layer_by_layer(sparsegpt),
    # its settings, in case those of its authors, for large language models, are poor ones here
    "sparsegpt_damping_0.001": layer_by_layer(functools.partial(sparsegpt, damping=0.001)),
    "sparsegpt_damping_0.1": layer_by_layer(functools.partial(sparsegpt, damping=0.1)),
    "sparsegpt_one_block": layer_by_layer(functools.partial(sparsegpt, block=10**6)),
}


def run_methods(dataset, seed, options, methods, images):
    """Yield a row of the CSV for each method and level, after each repair of the script."""
    changes = {"methods": methods, "sparsities": LEVELS, "refit_images": images}
    for row in project.run_seed(dataset, seed, argparse.Namespace(**vars(options) | changes)):
        if row["method"] != "dense":
            network = [row[column] for column in project.KEY]
            yield *network, images, 0, row["live_fraction"], row["test_accuracy"]


# ---------------------------------------------------------------------------------------- repairs


def choose(dataset, count, seed, dense):
    """Choose training images; return what each layer of the dense network gets and computes."""
    order = project.rng_for(seed, "refit images").permutation(len(dataset.train_images))
    images = tf.gather(dataset.train_images, order[:count]).numpy()
    inputs = [np.asarray(received) for received in project.layer_inputs(dense.hidden, images)]
    return inputs, [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, dense.kernels)]


def of_live_units(outputs, kernels):
    """Choose from outputs of each layer, [n, units], the units that are live in pruned kernels."""
    return [layer[:, live] for layer, live in zip(outputs, project.live_units(kernels)[1:])]


def with_random_values(network, generator):
    """Replace the hidden weights by random ones of the same places and standard deviation."""
    kernels = []
    for kernel in network.hidden:
        values = generator.normal(scale=kernel[kernel != 0].std(), size=kernel.shape)
        kernels.append(np.where(kernel != 0, values, 0).astype(np.float32))
    return network._replace(hidden=tuple(kernels))


def with_shuffled_places(network, generator):
    """Shuffle the incoming weights of each hidden unit, zeros and all."""
    kernels = [generator.permuted(kernel, axis=0) for kernel in network.hidden]
    return network._replace(hidden=tuple(kernels))


def rescale(network, images, targets):
    """Scale the incoming weights of each unit, so that its output varies as in the dense network.

    Arguments: as for a repair of the script.
    """
    inputs = images
    kernels = []
    for kernel, wanted in zip(network.kernels, targets):
        spread = (inputs @ kernel).std(axis=0)
        factors = np.where(spread > 0, wanted.std(axis=0) / np.maximum(spread, 1e-9), 1)
        kernels.append(kernel * factors)
        inputs = np.maximum(inputs @ kernels[-1], 0)
    return project.network_of([*kernels, network.bias])


def refit_own(dense, kernels, images):
    """Refit the hidden layers to what the dense ones would compute from the same inputs.

    That is what SparseGPT aims at, too. kernels: of the pruned network, not compacted.
    """
    inputs = images
    refitted = []
    for kernel, trained in zip(kernels[:-1], dense.hidden):
        refitted.append(project.refit(kernel, inputs, inputs @ trained))
        inputs = np.maximum(inputs @ refitted[-1], 0)
    return dense._replace(hidden=tuple(refitted))


def repairs(dense, kernels, samples, foreign, seed, options):
    """Yield (control, images, epochs, network) for each way to repair a network.

    kernels: of the pruned network, not compacted. samples: from `choose`, by the number of images.
    foreign: one from the other data set.
    """
    pruned = project.network_of([*project.compact(kernels), dense.bias])

    def refit(inputs, outputs):
        return project.refit_all(pruned, inputs[0], of_live_units(outputs, kernels))

    refits = {count: refit(*sample) for count, sample in samples.items()}
    for count, network in refits.items():
        yield "refit", count, 0, network
    count = REFIT_IMAGES
    yield "other_images", count, 0, refit(*foreign)

    inputs, outputs = samples[count]
    images = inputs[0]
    targets = of_live_units(outputs, kernels)
    yield "refit_own", count, 0, refit_own(dense, kernels, images)
    again = refits[count]
    for _ in range(REFITS - 1):
        again = project.refit_all(again, images, targets)
    yield "refit_again", count, 0, again
    yield "rescaled", count, 0, rescale(pruned, images, targets)
    random = with_random_values(pruned, project.rng_for(seed, "random values"))
    yield "random_values", count, 0, project.refit_output(random, images, targets)
    shuffled = with_shuffled_places(pruned, project.rng_for(seed, "shuffled places"))
    yield "shuffled_output", count, 0, project.refit_output(shuffled, images, targets)
    yield "shuffled", count, 0, project.refit_all(shuffled, images, targets)

    teacher = tf.nn.softmax(targets[-1] + dense.bias)
    imitated = project.Dataset("images", tf.constant(images), teacher, None, None, None)

    def distilled(network, epochs):
        rng = project.rng_for(seed, "distillation")
        return project.train(network, imitated, epochs, options, rng)

    for epochs in DISTILLATION_EPOCHS:
        yield "distilled", count, epochs, distilled(pruned, epochs)
    epochs = DISTILLATION_EPOCHS[0]
    yield "refit_distilled", count, epochs, distilled(refits[count], epochs)


def run_repairs(dataset, other, seed, options):
    """Yield a row of the CSV for each pruned network and way to repair it."""
    dense = project.dense_network(dataset, seed, options)
    samples = {count: choose(dataset, count, seed, dense) for count in IMAGE_COUNTS}
    foreign = choose(other, REFIT_IMAGES, seed, dense)
    inputs, _ = samples[REFIT_IMAGES]
    weights = sum(kernel.size for kernel in dense.hidden)
    for method, sparsities in PRUNED.items():
        for sparsity in sparsities:
            rng = project.rng_for(seed, f"prune {method}")
            hidden = project.METHODS[method](dense.hidden, inputs, sparsity, rng)
            kernels = [*hidden, dense.output]
            ways = repairs(dense, kernels, samples, foreign, seed, options)
            for control, count, epochs, network in ways:
                received = project.layer_inputs(network.hidden, dataset.test_images)[-1]
                outputs = project.logits(network, received).numpy()
                accuracy, _ = project.evaluate(outputs, dataset.test_labels)
                kept = project.compact(network.kernels)[:-1]
                live = sum(map(np.count_nonzero, kept)) / weights
                yield dataset.name, seed, method, sparsity, control, count, epochs, live, accuracy


def main():
    """Run the controls."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="as that of network_pruning.py")
    parser.add_argument("--output-dir", default="plots", help="as that of network_pruning.py")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    arguments = parser.parse_args()
    options = project.parse_options(["--output-dir", arguments.output_dir])
    datasets = dict(zip(DATASETS, project.load_datasets(DATASETS, arguments.data_dir)))
    project.METHODS.update(METHODS)
    project.measure_speed = lambda sizes, images: dict.fromkeys(sizes)  # not among the controls
    print("dataset,seed,method,sparsity,control,images,epochs,live_fraction,test_accuracy")
    for name, seed in itertools.product(arguments.datasets, arguments.seeds):
        dataset = datasets[name]
        parts = [run_methods(dataset, seed, options, METHODS, REFIT_IMAGES)]
        if name in OTHERS:
            parts.append(run_methods(dataset, seed, options, ["sparsegpt"], max(IMAGE_COUNTS)))
            parts.append(run_repairs(dataset, datasets[OTHERS[name]], seed, options))
        for *what, live, accuracy in itertools.chain(*parts):
            print(*what, f"{live:.6f}", f"{accuracy:.6f}", sep=",", flush=True)


if __name__ == "__main__":
    main()

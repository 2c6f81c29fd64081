"""Controls: other methods of pruning, what refitting needs, what else would do. Prints a CSV.

    python tests/controls.py --data-dir DIR > plots/published/controls.csv

Trains the networks of network_pruning.py, seed for seed. Prunes them by methods that the script
does not have, repairs networks pruned by its own methods in other ways, and measures the test
accuracy. A seed takes about five minutes of one core for each data set; --seeds and --datasets run
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

OPTIONS = project.parse_options([])  # the settings of the script
DATASETS = (*project.TITLES, project.BUNDLED)
OTHERS = {"mnist": "fashion_mnist", "fashion_mnist": "mnist"}  # whose images are tried, too
LEVELS = (0.9, 0.95, 0.97, 0.99)  # at which methods are compared
PRUNED = {  # method: sparsities
    "weight": LEVELS,
    "scaled_weight": (0.99,),
    "neuron": (0.8, 0.9),
    "random_weight": (0.8, 0.95),
}
IMAGE_COUNTS = (100, 300, project.REFIT_IMAGES, 5000)
DISTILLATION_EPOCHS = (10, 40)
REFITS = 9  # as often as gradual pruning refits until 0.99


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


def gradual(method):
    """Make a method that goes through the levels of the script: prune, refit, prune further.

    Each time, `method` scores the weights and inputs of the network refit so far, which is then
    refit towards the dense network again. The script's repairs finish the last level.
    """

    def prune(kernels, inputs, sparsity, rng):
        images = inputs[0]
        network = project.Network(kernels, None)  # hidden layers, none of which has a bias
        targets = project.preactivations(network, inputs)
        for level in project.SPARSITIES:
            if level < sparsity:
                pruned = method(network.kernels, inputs, level, rng)
                network = project.refit_layers(network._replace(kernels=pruned), images, targets)
                inputs = [np.asarray(x) for x in project.layer_inputs(network, images)]
        return method(network.kernels, inputs, sparsity, rng)

    return prune


METHODS = {
    "weight_by_unit": weight_by_unit,
    "scaled_by_unit": scaled_by_unit,
    "wanda": layer_by_layer(wanda),
    "sparsegpt": layer_by_layer(sparsegpt),
    # its settings, in case those of its authors, for large language models, are poor ones here
    "sparsegpt_damping_0.001": layer_by_layer(functools.partial(sparsegpt, damping=0.001)),
    "sparsegpt_damping_0.1": layer_by_layer(functools.partial(sparsegpt, damping=0.1)),
    "sparsegpt_one_block": layer_by_layer(functools.partial(sparsegpt, block=10**6)),
    "gradual_weight": gradual(project.METHODS["weight"]),
    "gradual_scaled": gradual(project.METHODS["scaled_weight"]),
    "gradual_neuron": gradual(project.METHODS["neuron"]),
}


def run_methods(dense, dataset, seed, methods, images):
    """Yield a row of the CSV for each method and level, after each repair of the script."""
    arguments = ["--methods", *methods, "--sparsities", *map(str, LEVELS)]
    options = project.parse_options([*arguments, "--refit-images", str(images)])
    rows, _ = project.prune_dense(dense, dataset, seed, options)
    for row in rows:
        if row["method"] != "dense":
            network = [row[column] for column in project.KEY]
            yield *network, images, 0, row["live_fraction"], row["test_accuracy"]


# ---------------------------------------------------------------------------------------- repairs


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


def refit_own(dense, kernels, images):
    """Refit the hidden layers to what the dense ones would compute from the same inputs.

    That is what SparseGPT aims at, too. kernels: of the pruned network, not compacted.
    """
    inputs = images
    refitted = []
    for kernel, trained in zip(kernels[:-1], dense.hidden):
        refitted.append(project.refit(kernel, inputs, inputs @ trained))
        inputs = np.maximum(inputs @ refitted[-1], 0)
    return dense._replace(kernels=[*refitted, kernels[-1]])


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
    yield "refit_own", count, 0, refit_own(dense, kernels, images)
    again = refits[count]
    for _ in range(REFITS - 1):
        again = project.refit_layers(again, images, targets)
    yield "refit_again", count, 0, again
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


def run_repairs(dense, dataset, other, seed):
    """Yield a row of the CSV for each pruned network and way to repair it."""
    samples = {count: choose(dataset, count, seed, dense) for count in IMAGE_COUNTS}
    foreign = choose(other, project.REFIT_IMAGES, seed, dense)
    inputs, _ = samples[project.REFIT_IMAGES]
    weights = sum(kernel.size for kernel in dense.hidden)
    for method, sparsities in PRUNED.items():
        for sparsity in sparsities:
            rng = project.rng_for(seed, f"prune {method}")
            hidden = project.METHODS[method](dense.hidden, inputs, sparsity, rng)
            kernels = [*hidden, dense.kernels[-1]]
            for control, count, epochs, network in repairs(dense, kernels, samples, foreign, seed):
                outputs = project.logits(network, dataset.test_images).numpy()
                accuracy, _ = project.evaluate(outputs, dataset.test_labels)
                kept = project.compact(network.kernels)[:-1]
                live = sum(map(np.count_nonzero, kept)) / weights
                yield dataset.name, seed, method, sparsity, control, count, epochs, live, accuracy


def main():
    """Run the controls."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="as that of network_pruning.py")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    options = parser.parse_args()
    datasets = dict(zip(DATASETS, project.load_datasets(DATASETS, options.data_dir)))
    project.METHODS.update(METHODS)
    project.TIMING_ROUNDS = 0  # speeds are not among the controls
    print("dataset,seed,method,sparsity,control,images,epochs,live_fraction,test_accuracy")
    for name, seed in itertools.product(options.datasets, options.seeds):
        dataset = datasets[name]
        dense = project.train_dense(dataset, seed, OPTIONS)
        parts = [run_methods(dense, dataset, seed, METHODS, project.REFIT_IMAGES)]
        if name in OTHERS:
            parts.append(run_methods(dense, dataset, seed, ["sparsegpt"], max(IMAGE_COUNTS)))
            parts.append(run_repairs(dense, dataset, datasets[OTHERS[name]], seed))
        for *what, live, accuracy in itertools.chain(*parts):
            print(*what, f"{live:.6f}", f"{accuracy:.6f}", sep=",", flush=True)


if __name__ == "__main__":
    main()

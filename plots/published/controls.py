"""Controls: pruning and repairs that network_pruning.py does not have. Prints a CSV.

    python plots/published/controls.py --data-dir DIR --output-dir plots/published > controls.csv

Adds methods and repairs to those of the script, and runs its experiment with them: on the dense
networks in networks/ of --output-dir; those that are not there are trained.
"""

import argparse
import functools
import itertools
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import linalg

sys.path.insert(0, str(Path(__file__).parents[2]))
import network_pruning as project

project.configure_tensorflow()
tf = project.tf

RECIPE = project.parse_options([])
REFIT_IMAGES = RECIPE.refit_images
DATASETS = (*project.TITLES, "digits")
OTHERS = {"mnist": "fashion_mnist", "fashion_mnist": "mnist"}  # whose images are tried, too
KEY = ["dataset", "seed", "method", "sparsity", "repair"]  # of a row
SPARSITIES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)  # of what is published
LEVELS = [0.9, 0.95, 0.97, 0.99]  # at which methods are compared
# networks whose refitting is explained
REFIT = {"weight": [0.95, 0.99], "neuron": [0.8], "random_weight": [0.8, 0.95]}
DISTILLATION_EPOCHS = 40
COLUMNS = [*KEY, "images", "live_fraction", "test_accuracy"]


# ---------------------------------------------------------------------------------------- methods
# Arguments are those of the script's methods.


def scaled_weight(network, inputs, sparsities, rng):
    """Remove the weights of smallest magnitude times the L2 norm of the input that they multiply.

    The score of Wanda, which compares weights within each unit; this does within each layer.
    """
    norms = [np.linalg.norm(received, axis=0)[:, np.newaxis] for received in inputs]
    scores = [np.abs(kernel) * norm for kernel, norm in zip(network.hidden, norms)]
    return project.cut(network.hidden, scores, sparsities)


def gradual_scaled(network, inputs, sparsities, rng):
    """Prune by `scaled_weight` in the steps of SPARSITIES; refit the hidden layers between them."""
    images = inputs[0]
    targets = [tf.matmul(x, kernel).numpy() for x, kernel in zip(inputs, network.hidden)]
    steps = list(SPARSITIES)
    for sparsity in sparsities:
        while steps and steps[0] < sparsity:
            [hidden] = scaled_weight(network, inputs, [steps.pop(0)], rng)
            network = network._replace(hidden=tuple(project.refit_layers(hidden, images, targets)))
            inputs = [np.asarray(x) for x in project.layer_inputs(network.hidden, images)]
        yield from scaled_weight(network, inputs, [sparsity], rng)


def global_weight(network, inputs, sparsities, rng):
    """Remove the weights of smallest magnitude of all layers together."""
    scores = [np.abs(kernel) for kernel in network.hidden]
    for sparsity in sparsities:
        yield project.prune_together(network.hidden, scores, sparsity)


def wanda(kernel, inputs, sparsity):
    """Remove the weights of smallest magnitude times the L2 norm of their input in each unit.

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    norms = np.linalg.norm(inputs, axis=0)
    units = [project.zero_lowest(unit, np.abs(unit) * norms, sparsity) for unit in kernel.T]
    return np.stack(units, axis=1)


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

    def method(network, inputs, sparsities, rng):
        for sparsity in sparsities:
            received = inputs[0]
            pruned = []
            for kernel in network.hidden:
                pruned.append(prune(kernel, received, sparsity))
                received = np.maximum(received @ pruned[-1], 0)
            yield pruned

    return method


METHODS = {
    "scaled_weight": scaled_weight,
    "gradual_scaled": gradual_scaled,
    "global_weight": global_weight,
    "wanda": layer_by_layer(wanda),
    "sparsegpt": layer_by_layer(sparsegpt),
    # of other blocks and dampings, all inputs in one block was the best setting on these data sets
    "sparsegpt_one_block": layer_by_layer(functools.partial(sparsegpt, block=10**6)),
}

# ---------------------------------------------------------------------------------------- repairs
# Arguments are those of the script's repairs.


def rng_of(network):
    """Make a generator that is another one for each network, and the same in each run."""
    checksum = zlib.crc32(b"".join(kernel.tobytes() for kernel in network.kernels))
    return project.rng_for(checksum, "controls")


def random_values(network, images, targets):
    """Draw the hidden weights anew, with their places and deviation; refit the output layer."""
    rng = rng_of(network)
    kernels = []
    for kernel in network.hidden:
        values = rng.normal(scale=kernel[kernel != 0].std(), size=kernel.shape)
        kernels.append(np.where(kernel != 0, values, 0).astype(np.float32))
    return project.refit_output(network._replace(hidden=tuple(kernels)), images, targets)


def shuffled(network, images, targets, repair=project.refit_all):
    """Shuffle the incoming weights of each hidden unit, zeros and all; refit all layers."""
    rng = rng_of(network)
    kernels = [rng.permuted(kernel, axis=0) for kernel in network.hidden]
    return repair(network._replace(hidden=tuple(kernels)), images, targets)


def distilled(network, images, targets):
    """Train on the images to predict the dense network's class probabilities; zeros stay zeros.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", at temperature 1.
    """
    teacher = tf.nn.softmax(targets[-1] + network.bias)
    imitated = project.Dataset("images", tf.constant(images), teacher, None, None)
    return project.train(network, imitated, DISTILLATION_EPOCHS, RECIPE, rng_of(network))


REPAIRS = {
    **project.REPAIRS,
    "random_values": random_values,
    "shuffled": shuffled,
    "shuffled_output": functools.partial(shuffled, repair=project.refit_output),
    "distilled": distilled,
}

# ----------------------------------------------------------------------------------- experiment

STATES = ["none", "refit", "distilled", "retrain"]
COMPARED = [  # methods, repairs, images to refit on, sparsities
    (["weight"], ["distilled"], REFIT_IMAGES, LEVELS),
    (["scaled_weight", "gradual_scaled", "sparsegpt"], STATES, REFIT_IMAGES, LEVELS),
    (["global_weight", "sparsegpt_one_block", "wanda"], ["none", "refit"], REFIT_IMAGES, LEVELS),
]
EXPLAINED = [(["sparsegpt"], ["none"], 5000, [0.95])]  # digits have fewer images
for method, sparsities in REFIT.items():
    repairs = ["random_values", "shuffled", "shuffled_output"]
    EXPLAINED.append(([method], repairs, REFIT_IMAGES, sparsities))
    for images in (100, 300, 5000, "foreign"):
        EXPLAINED.append(([method], ["refit"], images, sparsities))


def run(dataset, other, seed, options):
    """Yield the rows of a data set and seed; other: the data set of foreign images, or None."""
    trained = project.dense_network(dataset, project.fingerprint(*dataset[1:]), seed, options)
    for methods, repairs, images, sparsities in COMPARED + EXPLAINED if other else COMPARED:
        source, count = dataset, images
        if images == "foreign":
            source = dataset._replace(train_images=other.train_images)
            count = REFIT_IMAGES
        changed = argparse.Namespace(**vars(options))
        changed.sparsities = sparsities
        changed.refit_images = count
        changed.retrain_epochs = int("retrain" in repairs)
        project.REPAIRS = {name: REPAIRS[name] for name in repairs if name in REPAIRS}
        for method in methods:
            for row in project.measure(trained, source, seed, method, changed):
                yield row | {"images": images}


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
    print(",".join(COLUMNS))
    for name, seed in itertools.product(arguments.datasets, arguments.seeds):
        rows = pd.DataFrame(run(datasets[name], datasets.get(OTHERS.get(name)), seed, options))
        print(rows.round(6).to_csv(columns=COLUMNS, header=False, index=False), end="", flush=True)


if __name__ == "__main__":
    main()

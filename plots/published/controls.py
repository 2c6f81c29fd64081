"""Controls: pruning and repairs that network_pruning.py is compared with. Prints a CSV.

    python plots/published/controls.py --data-dir DIR --output-dir DIR --datasets mnist

Uses the dense networks in networks/ of --output-dir; those that are not there are trained. With
--speed, it times networks instead; with --mlpnet, it prunes the network of a public benchmark.
"""

import argparse
import itertools
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from scipy import linalg, sparse

sys.path.insert(0, str(Path(__file__).parents[2]))
import network_pruning as project

project.configure_tensorflow()
tf = project.tf
saliencies = project.saliencies  # also while another score stands in for it

RECIPE = project.parse_options([])
DATASETS = (*project.TITLES, "digits")
LEVELS = [0.9, 0.95, 0.97, 0.99]  # sparsities at which methods are compared
FEW_EPOCHS = 40  # of training on as many images as refitting uses
TIMED = [("weight", "none")]  # methods and repairs
TIMED += itertools.product(("neuron", "saliency_neuron", "gradual_weight"), ("refit", "retrain"))
BATCHES = {250: 20, 10000: 3}  # images that are timed at once, and how often
MLPNET_LEVELS = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98]  # those of the papers
MLPNET_SCALE = 0.1307, 0.3081  # mean and deviation by which its images are normalized
KEY = ["dataset", "seed", "method", "sparsity", "repair"]  # of a row
COLUMNS = [*KEY, "images", "live_fraction", "test_accuracy"]


# ----------------------------------------------------------------------------------------- scores
# A score takes a network and what each layer receives; it returns the scores of hidden weights.


def magnitude(network, inputs):
    """Magnitude of each weight."""
    return [np.abs(kernel) for kernel in network.hidden]


def scaled(network, inputs):
    """Magnitude times the L2 norm of the input: the score of Wanda (Sun et al. 2024)."""
    norms = [np.linalg.norm(received, axis=0)[:, np.newaxis] for received in inputs]
    return [np.abs(kernel) * norm for kernel, norm in zip(network.hidden, norms)]


def obs(network, inputs):
    """Root of the layer's squared error that Optimal Brain Surgeon expects without each weight.

    Hassibi and Stork 1993, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon".
    """
    scores = []
    for kernel, received in zip(network.hidden, map(np.asarray, inputs)):
        inverse = linalg.inv(damped(received.T.astype(np.float64) @ received))
        scores.append(np.abs(kernel) / np.sqrt(inverse.diagonal())[:, np.newaxis])
    return scores


def obs_response(network, inputs):
    """`obs` times how much the logits respond to the unit, as in the script's saliency."""
    pairs = zip(obs(network, inputs), project.sensitivities(network, inputs))
    return [score * response for score, response in pairs]


def all_saliencies(network, inputs):
    """Saliencies of a network whose output layer is pruned as well: the last of `hidden`."""
    output = network.hidden[-1]
    split = project.network_of([*network.hidden, np.zeros(output.shape[1])])
    received = np.asarray(inputs[-2])
    norms = np.linalg.norm(received, axis=0)[:, np.newaxis]
    response = np.sqrt(len(received))  # of each logit to itself, over all images
    return [*saliencies(split, inputs[:-1]), np.abs(output) * norms * response]


def damped(hessian, damping=0.01):
    """Return a Hessian with a part of its mean diagonal added to its diagonal."""
    return hessian + damping * hessian.diagonal().mean() * np.eye(len(hessian))


# ---------------------------------------------------------------------------------------- methods
# Arguments are those of the script's methods, after those that a control adds.


def in_each_layer(kernels, scores, sparsity):
    """Remove the weights of lowest scores of each layer."""
    [pruned] = project.cut(kernels, scores, [sparsity])
    return pruned


def one_shot(score, select, network, inputs, sparsities, rng):
    """Remove the weights of lowest scores at once."""
    scores = score(network, inputs)
    for sparsity in sparsities:
        yield select(network.hidden, scores, sparsity)


def rounds(score, select, network, inputs, sparsities, rng):
    """Prune as `gradual_weight` does, by another score or within each layer."""
    with mock.patch.multiple(project, saliencies=score, prune_together=select):
        yield from project.gradual_weight(network, inputs, sparsities, rng)


def wanda(kernel, inputs, sparsity):
    """Remove the weights of smallest magnitude times the L2 norm of their input in each unit.

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    norms = np.linalg.norm(inputs, axis=0)
    units = [project.zero_lowest(unit, np.abs(unit) * norms, sparsity) for unit in kernel.T]
    return np.stack(units, axis=1)


def sparsegpt(kernel, inputs, sparsity, block=128):
    """Return a copy of a kernel, pruned by SparseGPT: weights are removed and updated in one pass.

    Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
    One-Shot". Goes through the inputs in blocks. In each block, the weights go whose removal costs
    least by the inverse Hessian of the layer's squared error, and the weights on later inputs make
    up for each. What it aims at are the outputs of this kernel on these inputs.

    kernel: [fan_in, units]. inputs: [n, fan_in]. sparsity: below 1.
    """
    weights = kernel.astype(np.float64)
    hessian = inputs.T.astype(np.float64) @ inputs
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weights[dead] = 0
    factor = linalg.cholesky(linalg.inv(damped(hessian)))  # upper triangular
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


def layer_by_layer(prune, network, inputs, sparsities, rng):
    """Prune each layer on the outputs of the layers pruned before it."""
    for sparsity in sparsities:
        received = inputs[0]
        pruned = []
        for kernel in network.hidden:
            pruned.append(prune(kernel, received, sparsity))
            received = np.maximum(received @ pruned[-1], 0)
        yield pruned


WHERE = {"layer": in_each_layer, "together": project.prune_together}
ABLATION = {
    f"{schedule.__name__}_{score.__name__}_{where}": partial(schedule, score, select)
    for schedule, score, (where, select) in itertools.product(
        (one_shot, rounds), (magnitude, scaled, saliencies), WHERE.items()
    )
}
OTHERS = {
    "wanda": partial(layer_by_layer, wanda),
    "sparsegpt": partial(layer_by_layer, sparsegpt),
    # of other blocks and dampings, all inputs in one block is the best at 0.95, as pruned
    "sparsegpt_one_block": partial(layer_by_layer, partial(sparsegpt, block=10**6)),
}
OBS = {
    "rounds_obs_layer": partial(rounds, obs, in_each_layer),
    "rounds_obs_response_together": partial(rounds, obs_response, project.prune_together),
}


def centered(network, images, targets):
    """Repair a network: subtract from each logit its mean over the images."""
    logits = project.layer_inputs(network.hidden, images)[-1] @ network.output
    return network._replace(bias=-np.mean(logits, axis=0))


# ----------------------------------------------------------------------------------- experiment
# Each takes a dense network, its data set and seed, and options of the script; it yields rows.

COMPARED = [  # methods, repairs, numbers of images
    (ABLATION, ["refit"], [RECIPE.refit_images]),
    (OTHERS, ["none", "refit"], [RECIPE.refit_images]),
    (OBS, ["refit"], [RECIPE.refit_images]),
    (["one_shot_magnitude_together", "rounds_retrained"], ["retrain"], [RECIPE.refit_images]),
    (["weight", "saliency_weight"], ["centered"], [RECIPE.refit_images]),
    (["weight", "gradual_weight"], ["distilled", "labeled"], [RECIPE.refit_images]),
    (["gradual_weight"], ["refit"], [100, 300, 5000]),
]


def compare(trained, dataset, seed, options):
    """Prune, repair and measure by the methods and repairs of COMPARED.

    distilled: trained on the images to predict the dense network's class probabilities (Hinton,
    Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", at temperature 1).
    labeled: trained on the same images to predict their true labels. Zeros stay zeros.
    rounds_retrained: as Han et al. 2015 prune (see `prune_weights`), on all labeled images.
    """
    order = project.rng_for(seed, "refit images").permutation(len(dataset.train_images))
    labels = tf.gather(dataset.train_targets, order[: RECIPE.refit_images])

    def rounds_retrained(network, inputs, sparsities, rng):
        """Remove each layer's smallest weights in rounds, with an epoch of training after each."""
        share = 1.0  # of the weights that is left
        for sparsity in sparsities:
            while 0.8 * share > 1 - sparsity:
                share *= 0.8
                hidden = in_each_layer(network.hidden, magnitude(network, inputs), 1 - share)
                network = network._replace(hidden=tuple(hidden))
                network = project.train(network, dataset, 1, RECIPE, rng)
            yield in_each_layer(network.hidden, magnitude(network, inputs), sparsity)

    def train_on_few(network, images, classes):
        few = project.Dataset("few", tf.constant(images), classes, None, None)
        rng = project.rng_for(seed, "train on few")
        return project.train(network, few, FEW_EPOCHS, RECIPE, rng)

    def distilled(network, images, targets):
        return train_on_few(network, images, tf.nn.softmax(targets[-1] + network.bias))

    def labeled(network, images, targets):
        return train_on_few(network, images, labels)

    pruning = {**project.METHODS, **ABLATION, **OTHERS, **OBS, "rounds_retrained": rounds_retrained}
    repairs = [centered, distilled, labeled]
    known = {**project.REPAIRS, **{repair.__name__: repair for repair in repairs}}
    options.sparsities = LEVELS
    for methods, names, counts in COMPARED:
        options.retrain_epochs = int("retrain" in names)
        chosen = {name: known[name] for name in names if name in known}
        for method, options.refit_images in itertools.product(methods, counts):
            if options.refit_images > len(dataset.train_images):
                continue
            with mock.patch.multiple(project, METHODS=pruning, REPAIRS=chosen):
                for row in project.measure(trained, dataset, seed, method, options):
                    row["images"] = options.refit_images
                    yield {name: row[name] for name in COLUMNS}


def time_networks(trained, dataset, seed, options):
    """Time how long networks take to make, and a pass beside the dense one's, by NumPy and SciPy.

    Those pruned by weights in rounds are run as sparse matrices. Minima of interleaved runs.
    """
    dense = [np.ascontiguousarray(kernel.T) for kernel in trained.kernels]
    columns = np.ascontiguousarray(dataset.test_images.numpy().T)
    batches = {size: np.ascontiguousarray(columns[:, :size]) for size in BATCHES}
    for (method, repair), sparsity in itertools.product(TIMED, RECIPE.sparsities[2:]):
        stored = sparse.csr_array if method == "gradual_weight" else np.ascontiguousarray
        options.sparsities = [sparsity]
        options.retrain_epochs = int(repair == "retrain")
        chosen = {name: f for name, f in project.REPAIRS.items() if name == repair}
        began = time.perf_counter()
        with mock.patch.object(project, "REPAIRS", chosen):
            networks = project.prune_and_repair(trained, dataset, seed, method, options)
            for kind, *_, network in networks:
                row = dict(zip(KEY, (dataset.name, seed, kind, sparsity, repair)))
                row["seconds"] = time.perf_counter() - began
                pruned = [stored(kernel.T) for kernel in network.kernels]
                for size, images in batches.items():
                    pairs = range(BATCHES[size])
                    runs = [[run(each, images) for each in (dense, pruned)] for _ in pairs]
                    yield row | {"batch": size, "speedup": np.divide(*np.min(runs, axis=0))}
                began = time.perf_counter()


def run(kernels, outputs):
    """Return the seconds of a pass; kernels and images are transposed."""
    began = time.perf_counter()
    for kernel in kernels:
        outputs = np.maximum(kernel @ outputs, 0)
    return time.perf_counter() - began


def prune_mlpnet(network, dataset, seed, options):
    """Prune the network of WoodFisher and CHITA, all its layers ranked together, as they do.

    Singh and Alistarh 2020, "WoodFisher: Efficient Second-Order Approximation for Neural Network
    Compression"; Benbaki et al. 2023, "Fast as CHITA: Neural Network Pruning with Combinatorial
    Optimization". The output layer is among the hidden ones of `network`, so it is pruned, too.
    """
    mean, deviation = MLPNET_SCALE
    order = project.rng_for(seed, "refit images").permutation(len(dataset.train_images))
    chosen = tf.gather(dataset.train_images, order[: options.refit_images])
    images = (chosen.numpy() - mean) / deviation
    test_images = (dataset.test_images.numpy() - mean) / deviation
    inputs = [np.asarray(x) for x in project.layer_inputs(network.hidden, images)]
    targets = [x @ kernel for x, kernel in zip(inputs, network.hidden)]
    arguments = network, inputs, MLPNET_LEVELS, None
    pruned = {
        "weight": one_shot(magnitude, project.prune_together, *arguments),
        "gradual_weight": rounds(all_saliencies, project.prune_together, *arguments),
        "rounds_saliencies_layer": rounds(all_saliencies, in_each_layer, *arguments),
    }
    for method, networks in pruned.items():
        for sparsity, kernels in zip(MLPNET_LEVELS, networks, strict=True):
            repaired = {"none": kernels, "refit": project.refit_layers(kernels, images, targets)}
            for repair, (*hidden, output) in repaired.items():
                logits = project.layer_inputs(hidden, test_images)[-1].numpy() @ output
                accuracy = project.evaluate(logits, dataset.test_labels)["test_accuracy"]
                row = dict(zip(KEY, ("mlpnet", seed, method, sparsity, repair)))
                yield row | {"images": len(images), "test_accuracy": accuracy}


def main():
    """Run the controls."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data-dir", type=Path, help="as that of network_pruning.py")
    add("--output-dir", default="plots", help="as that of network_pruning.py")
    add("--datasets", nargs="+", default=DATASETS)
    add("--hidden-units", nargs="+", default=[str(units) for units in RECIPE.hidden_units])
    add("--seeds", nargs="+", type=int, default=range(5))
    add("--speed", action="store_true", help="time networks; let nothing else run meanwhile")
    add("--mlpnet", type=Path, help="NPZ file with the kernels of the public benchmark")
    arguments = parser.parse_args()
    changes = ["--output-dir", arguments.output_dir, "--hidden-units", *arguments.hidden_units]
    if arguments.mlpnet:
        mlpnet = project.network_of([*np.load(arguments.mlpnet).values(), None, None])
    header = True
    for dataset in project.load_datasets(arguments.datasets, arguments.data_dir):
        data = project.fingerprint(*dataset[1:])
        for seed in arguments.seeds:
            options = project.parse_options(changes)
            if arguments.mlpnet:
                rows = prune_mlpnet(mlpnet, dataset, seed, options)
            else:
                trained = project.dense_network(dataset, data, seed, options)
                measure = time_networks if arguments.speed else compare
                rows = measure(trained, dataset, seed, options)
            table = pd.DataFrame(rows).round(6)
            print(table.to_csv(header=header, index=False), end="", flush=True)
            header = False


if __name__ == "__main__":
    main()

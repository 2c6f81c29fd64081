"""tests/controls.py: methods of pruning that the script is compared with."""

import controls
import numpy as np
import pytest
from conftest import ROOT, draw_kernels

import network_pruning

METHODS = {**network_pruning.METHODS, **controls.METHODS}

CASES = ROOT.parent / "shared" / "cases" / "sparsegpt.npz"


def layers(rng):
    """Kernels of two hidden layers, and what each receives for some images."""
    kernels = draw_kernels([30, 20, 10], rng)
    images = rng.random((200, 30), np.float32)
    return kernels, [images, np.maximum(images @ kernels[0], 0)]


@pytest.mark.parametrize("case", range(3))
def test_sparsegpt_makes_what_its_authors_code_makes(case):
    if not CASES.exists():
        pytest.skip("needs the reference outputs")
    arrays = np.load(CASES)
    names = ("kernel", "inputs", "sparsity", "pruned")
    kernel, inputs, sparsity, expected = (arrays[f"{name}_{case}"] for name in names)
    pruned = controls.sparsegpt(kernel, inputs, float(sparsity))
    np.testing.assert_array_equal(pruned == 0, expected == 0)
    np.testing.assert_allclose(pruned, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sparsegpt", "wanda"])
def test_each_layer_is_pruned_on_the_outputs_of_those_pruned_before(name):
    kernels, inputs = layers(np.random.default_rng(0))
    first, second = METHODS[name](kernels, inputs, 0.5, None)
    received = np.maximum(inputs[0] @ first, 0)
    expected = getattr(controls, name)(kernels[1], received, 0.5)
    np.testing.assert_array_equal(second, expected)


@pytest.mark.parametrize("method", ["weight_by_unit", "scaled_by_unit", "wanda"])
def test_by_unit_as_many_weights_are_left_in_each_unit(method):
    kernels, inputs = layers(np.random.default_rng(0))
    for kernel, pruned in zip(kernels, METHODS[method](kernels, inputs, 0.7, None)):
        assert set(np.count_nonzero(pruned, axis=0)) == {round(0.3 * len(kernel))}


def test_refit_own_aims_at_what_the_dense_layers_make_of_the_pruned_networks_outputs():
    kernels, inputs = layers(np.random.default_rng(0))
    ends = [np.ones((10, 3), np.float32), np.zeros(3)]
    dense = network_pruning.network_of([*kernels, *ends])
    pruned = [*METHODS["weight"](kernels, inputs, 0.5, None), dense.output]
    network = controls.refit_own(dense, pruned, inputs[0])
    received = np.maximum(inputs[0] @ network.kernels[0], 0)
    expected = network_pruning.refit(pruned[1], received, received @ kernels[1])
    np.testing.assert_array_equal(network.kernels[1], expected)
    np.testing.assert_array_equal(network.output, dense.output)

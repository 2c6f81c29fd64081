"""README.md and plots/published/: their numbers are those of the CSV files, and the code runs."""

import itertools
import re

import numpy as np
import pandas
import pytest
import tables
from controls import SPARSITIES
from tables import RESULTS, gain, gap_closed, limits, mean, values, verdict

import network_pruning
from network_pruning import TITLES, network_of, prune_weights

README, DETAILS = (path.read_text() for path in tables.FILES)


def test_an_interval_is_the_paired_one_of_student():
    better = pandas.Series([0.92, 0.93, 0.94], index=[0, 1, 2])
    worse = pandas.Series([0.92, 0.92, 0.92], index=[2, 1, 0])
    # 0, 1 and 2 points: a mean of 1, and 4.303 standard errors of 0.577 on either side
    assert limits(better, worse) == pytest.approx((1, -1.484, 3.484), abs=1e-3)
    assert gain(worse, better) == "\u22121.0 [\u22123.5, 1.5]"


def test_the_tables_are_those_of_the_csv_files_each_is_shown_once_and_every_column_explained():
    assert tables.render(README) == README and tables.render(DETAILS) == DETAILS
    shown = re.findall("<!-- table: (.+?) -->", README + DETAILS)
    assert sorted(shown) == sorted(tables.TABLES)
    assert not [column for column in RESULTS if f"`{column}`" not in DETAILS]


def worded(text, unit="points"):
    number, _, interval = text.partition(" ")
    return f"{number} {unit} {interval}"


def versus(name, sparsity, better, worse, images="1000", than="1000"):
    series = values(name, better, sparsity, images=images)
    return worded(gain(series, values(name, worse, sparsity, images=than)))


def closed(name, sparsity):
    return worded(gap_closed(name, "gradual_scaled refit", sparsity), "%")


def equal_live(name, method):
    """How far a method is ahead of magnitude that has about as many live weights, both refit."""
    return worded(gain(values(name, f"{method} refit", 0.95), values(name, "weight refit", 0.97)))


def each(names, sparsity, better, *worse):
    return [versus(name, sparsity, better, other) for other in worse for name in names]


# Every number of the prose that comes from the CSV files, in the order in which it appears.
EXPECTED = [
    f"{values('mnist', 'weight none', 0.95).min():.3f}",
    f"{values('mnist', 'weight none', 0.95).max():.3f}",
    mean("mnist", "dense none"),
    mean("mnist", "weight none", 0.8),
    mean("mnist", "weight none", 0.95),
    mean("mnist", "weight refit", 0.95),
    mean("mnist", "gradual_scaled refit", 0.99),
    versus("mnist", 0.8, "matched_weight refit", "neuron refit"),
    tables.speedup("mnist", "neuron", 0.8).replace("×", " times"),
    versus("mnist", 0.95, "scaled_weight none", "weight none"),
    versus("mnist", 0.95, "weight refit", "scaled_weight refit"),
    versus("mnist", 0.99, "scaled_weight refit", "weight refit"),
    worded(gain(values("mnist", "dense none"), values("mnist", "weight none", 0.5))),
    worded(gain(values("mnist", "dense none"), values("mnist", "random_weight none", 0.5))),
    *each(TITLES, 0.95, "weight no_bias", "weight none"),
    versus("fashion_mnist", 0.95, "weight refit", "weight none"),
    mean("mnist", "random_weight none", 0.8),
    mean("mnist", "random_weight refit_output", 0.8),
    versus("mnist", 0.8, "random_weight refit_output", "random_weight random_values"),
]
EXPECTED_DETAILS = [
    *each(tables.DATASETS, 0.97, "gradual_scaled distilled", "weight distilled"),
    *each(tables.DATASETS, 0.99, "gradual_scaled distilled", "weight distilled"),
    *each(tables.DATASETS, 0.99, "gradual_scaled refit", "weight refit"),
    *each(tables.DATASETS, 0.97, "gradual_scaled refit", "weight refit"),
    versus("fashion_mnist", 0.95, "gradual_scaled refit", "weight refit"),
    versus("fashion_mnist", 0.99, "weight distilled", "gradual_scaled refit"),
    *each(TITLES, 0.99, "weight retrain", "gradual_scaled refit", "gradual_scaled distilled"),
    *(closed(name, sparsity) for sparsity in (0.99, 0.95) for name in TITLES),
    *each(TITLES, 0.99, "gradual_scaled retrain", "gradual_scaled distilled"),
    *each(TITLES, 0.95, "weight refit", "sparsegpt none", "sparsegpt refit"),
    *each(TITLES, 0.95, "weight refit", "sparsegpt_one_block none"),
    *(versus(name, 0.95, "weight refit", "sparsegpt none", "5000", "5000") for name in TITLES),
    versus("digits", 0.95, "sparsegpt refit", "weight refit"),
    *(equal_live(name, method) for method in ("scaled_weight", "sparsegpt") for name in TITLES),
    versus("mnist", 0.95, "scaled_weight none", "weight none"),
    versus("mnist", 0.95, "weight refit", "scaled_weight refit"),
    *each(TITLES, 0.99, "scaled_weight refit", "weight refit"),
    versus("digits", 0.9, "weight none", "scaled_weight none"),
    *each(TITLES, 0.95, "scaled_weight refit", "wanda refit"),
    *(mean(name, "dense none") for name in tables.DATASETS),
    versus("mnist", 0.99, "random_weight refit_output", "random_weight refit"),
    versus("fashion_mnist", 0.7, "matched_weight retrain", "neuron retrain"),
    versus("mnist", 0.8, "matched_weight no_bias", "neuron no_bias"),
    *each(TITLES, 0.95, "scratch retrain", "neuron retrain"),
    versus("mnist", 0.95, "weight refit", "weight refit", than="100"),
    versus("mnist", 0.95, "weight refit", "weight refit", than="foreign"),
    versus("mnist", 0.95, "weight shuffled", "weight shuffled_output"),
    versus("mnist", 0.95, "weight refit", "weight shuffled"),
    versus("mnist", 0.8, "neuron refit", "neuron shuffled"),
    versus("mnist", 0.95, "random_weight random_values", "random_weight refit_output"),
    versus("fashion_mnist", 0.95, "random_weight refit_output", "random_weight random_values"),
]

NUMBER = r"(?<![\d.])\d\.\d{3}(?!\d)|−?\d+\.\d (?:points|%) \[[^]]*\]|\d+\.\d times"


def prose(text):
    code_or_table = r"```.*?```|<details>.*?</details>|^ *\|.*?$"
    return " ".join(re.sub(code_or_table, "", text, flags=re.DOTALL | re.MULTILINE).split())


def test_every_number_of_the_prose_is_that_of_the_csv_files():
    assert re.findall(NUMBER, prose(README)) == EXPECTED
    assert re.findall(NUMBER, prose(DETAILS)) == EXPECTED_DETAILS


@pytest.mark.parametrize(
    ("name", "first", "second", "highest"),
    [
        *((name, "matched_weight refit", "neuron refit", 0.8) for name in TITLES),
        ("mnist", "matched_weight retrain", "neuron retrain", 0.9),
        *((name, "neuron retrain", "scratch retrain", 0.8) for name in TITLES),
    ],
)
def test_two_are_equivalent_as_the_page_says(name, first, second, highest):
    for sparsity in (level for level in SPARSITIES if level <= highest):
        pair = (values(name, state, sparsity) for state in (first, second))
        assert verdict(*pair, (first, second)) == "equivalent"


HIGH = (0.97, 0.99)
METHODS = ("weight", "scaled_weight", "gradual_scaled", "sparsegpt")
UNLABELED = [f"{name} {repair}" for repair in ("none", "refit", "distilled") for name in METHODS]
UNLABELED += ["global_weight refit", "wanda refit", "sparsegpt_one_block refit"]
UNLABELED.remove("gradual_scaled distilled")


@pytest.mark.parametrize(
    ("names", "levels", "better", "worse"),
    [
        *((tables.DATASETS, HIGH, "gradual_scaled distilled", state) for state in UNLABELED),
        (tables.DATASETS, HIGH, "gradual_scaled refit", "weight refit"),
        (tables.DATASETS, tables.LEVELS, "weight refit", "sparsegpt none"),
        (TITLES, tables.LEVELS, "scaled_weight refit", "wanda refit"),
    ],
)
def test_one_is_surely_ahead_as_the_page_says(names, levels, better, worse):
    for name, sparsity in itertools.product(names, levels):
        _, low, _ = limits(values(name, better, sparsity), values(name, worse, sparsity))
        assert low > 0, (name, sparsity)


def test_the_run_of_the_original_is_above_the_mean_in_13_cells_and_above_all_seeds_in_seven():
    cells = [(*which, level) for which in tables.ORIGINAL for level in tables.SLOPE]
    leads = [float(tables.once(n, m, s)) - values(n, f"{m} none", s) for n, m, s in cells]
    assert sum(lead.mean() > 0 for lead in leads) == 13
    assert sum(lead.min() > 0 for lead in leads) == 7


def test_the_code_of_the_front_page_works_as_shown():
    own, layer_of_ones_own = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {**vars(network_pruning), "METHODS": {}}
    exec(own, names)
    network = network_of([np.array([[1.0, -3.0], [2.0, 0.5]]), None, None])
    [pruned], [sparser] = names["METHODS"]["largest_weight"](network, None, [0.5, 0.75], None)
    np.testing.assert_array_equal(pruned, [[1, 0], [0, 0.5]])
    np.testing.assert_array_equal(sparser, [[0, 0], [0, 0.5]])
    layer = network_pruning.keras.layers.Dense(10)
    layer.build([None, 20])
    expected = prune_weights(layer.get_weights()[0], 0.9)
    exec(layer_of_ones_own, {"layer": layer})
    np.testing.assert_array_equal(layer.get_weights()[0], expected)

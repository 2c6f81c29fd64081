"""README.md and plots/published/: their numbers are those of the CSV files, and the code runs."""

import itertools
import re

import numpy as np
import pandas
import pytest
import tables
from controls import KEY, SPARSITIES
from tables import RESULTS, gain, gap_closed, limits, mean, values, verdict

import network_pruning
from network_pruning import TITLES, network_of, prune_weights

README, DETAILS = (path.read_text() for path in tables.FILES)


@pytest.mark.parametrize("name", tables.DATASETS)
def test_every_published_seed_has_the_same_rows(name):
    rows = RESULTS[RESULTS["dataset"] == name]
    assert list(rows["seed"].unique()) == list(range(10))
    assert (RESULTS[["device", "versions", "script", "training_code"]].nunique() == 1).all()
    assert set(rows["method"]) == {*tables.METHODS, "dense"}
    assert set(rows["repair"]) == set(tables.REPAIRS)
    assert not rows.duplicated(KEY).any()
    assert (rows.groupby(KEY[2:])["seed"].nunique() == 10).all()
    assert len(rows) == 10 * 5 * (1 + 9 * 8) + 10 * 9  # from scratch, only retrained


@pytest.mark.parametrize("name", tables.DATASETS)
def test_every_seed_of_the_controls_has_the_same_rows_and_the_published_dense_network(name):
    rows = tables.CONTROLS[tables.CONTROLS["dataset"] == name]
    assert not rows.duplicated(["seed", *tables.NETWORKS]).any()
    assert (rows.groupby(tables.NETWORKS)["seed"].nunique() == 10).all()
    networks = values(name, "dense none", column="dense_network")
    assert (rows["dense_network"] == rows["seed"].map(networks)).all()


def test_an_interval_is_the_paired_one_of_student():
    better = pandas.Series([0.92, 0.93, 0.94], index=[0, 1, 2])
    worse = pandas.Series([0.92, 0.92, 0.92], index=[2, 1, 0])
    # 0, 1 and 2 points: a mean of 1, and 4.303 standard errors of 0.577 on either side
    assert limits(better, worse) == pytest.approx((1, -1.484, 3.484), abs=1e-3)
    assert gain(worse, better) == "\u22121.0 [\u22123.5, 1.5]"


def test_a_verdict_is_reached_by_the_intervals():
    second = pandas.Series([0.9, 0.8, 0.7])
    equal, first, worse, wide = (0.1, 0.2, 0.3), (2.1, 2.2, 2.3), (-2.1, -2.2, -2.3), (-2, 1, 3)
    # a sure lead of less than the margin is none
    for points, said in ((equal, "equivalent"), (first, "1"), (worse, "2"), (wide, "undecided")):
        assert verdict(second + pandas.Series(points) / 100, second, ("1", "2")) == said


def test_the_tables_are_those_of_the_csv_files_and_each_is_shown_once():
    assert tables.render(README) == README and tables.render(DETAILS) == DETAILS
    shown = re.findall("<!-- table: (.+?) -->", README + DETAILS)
    assert sorted(shown) == sorted(tables.TABLES)


def points(better, worse):
    number, _, rest = gain(better, worse).partition(" ")
    return f"{number} points {rest}"


def versus(name, sparsity, better, worse):
    return points(values(name, better, sparsity), values(name, worse, sparsity))


def closed(name, sparsity):
    number, _, rest = gap_closed(name, "gradual_scaled refit", sparsity).partition(" ")
    return f"{number} % {rest}"


def fewer_images(name, images):
    refit = values(name, "weight refit", 0.95)
    return points(refit, values(name, "weight refit", 0.95, images=images))


def more_images(name):
    both = [
        values(name, state, 0.95, images="5000") for state in ("weight refit", "sparsegpt none")
    ]
    return points(*both)


def equal_live(name, method):
    """How far a method is ahead of magnitude that has about as many live weights, both refit."""
    return points(values(name, f"{method} refit", 0.95), values(name, "weight refit", 0.97))


def each(names, show, *what):
    return [show(name, *what) for name in names]


COLLAPSED = values("mnist", "weight none", 0.95)
# Every number of the prose that comes from the CSV files, in the order in which it appears.
EXPECTED = [
    f"{COLLAPSED.min():.3f}",
    f"{COLLAPSED.max():.3f}",
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
    points(values("mnist", "dense none"), values("mnist", "weight none", 0.5)),
    points(values("mnist", "dense none"), values("mnist", "random_weight none", 0.5)),
    *each(TITLES, versus, 0.95, "weight no_bias", "weight none"),
    versus("fashion_mnist", 0.95, "weight refit", "weight none"),
    mean("mnist", "random_weight none", 0.8),
    mean("mnist", "random_weight refit_output", 0.8),
    versus("mnist", 0.8, "random_weight refit_output", "random_weight random_values"),
]
EXPECTED_DETAILS = [
    *each(tables.DATASETS, versus, 0.97, "gradual_scaled distilled", "weight distilled"),
    *each(tables.DATASETS, versus, 0.99, "gradual_scaled distilled", "weight distilled"),
    *each(tables.DATASETS, versus, 0.99, "gradual_scaled refit", "weight refit"),
    *each(tables.DATASETS, versus, 0.97, "gradual_scaled refit", "weight refit"),
    versus("fashion_mnist", 0.95, "gradual_scaled refit", "weight refit"),
    versus("fashion_mnist", 0.99, "weight distilled", "gradual_scaled refit"),
    *each(TITLES, versus, 0.99, "weight retrain", "gradual_scaled refit"),
    *each(TITLES, versus, 0.99, "weight retrain", "gradual_scaled distilled"),
    *each(TITLES, closed, 0.99),
    *each(TITLES, closed, 0.95),
    *each(TITLES, versus, 0.99, "gradual_scaled retrain", "gradual_scaled distilled"),
    *each(TITLES, versus, 0.95, "weight refit", "sparsegpt none"),
    *each(TITLES, versus, 0.95, "weight refit", "sparsegpt refit"),
    *each(TITLES, versus, 0.95, "weight refit", "sparsegpt_one_block none"),
    *each(TITLES, more_images),
    versus("digits", 0.95, "sparsegpt refit", "weight refit"),
    *each(TITLES, equal_live, "scaled_weight"),
    *each(TITLES, equal_live, "sparsegpt"),
    versus("mnist", 0.95, "scaled_weight none", "weight none"),
    versus("mnist", 0.95, "weight refit", "scaled_weight refit"),
    *each(TITLES, versus, 0.99, "scaled_weight refit", "weight refit"),
    versus("digits", 0.9, "weight none", "scaled_weight none"),
    *each(TITLES, versus, 0.95, "scaled_weight refit", "wanda refit"),
    *each(tables.DATASETS, mean, "dense none"),
    versus("mnist", 0.99, "random_weight refit_output", "random_weight refit"),
    versus("fashion_mnist", 0.7, "matched_weight retrain", "neuron retrain"),
    versus("mnist", 0.8, "matched_weight no_bias", "neuron no_bias"),
    *each(TITLES, versus, 0.95, "scratch retrain", "neuron retrain"),
    fewer_images("mnist", "100"),
    fewer_images("mnist", "foreign"),
    versus("mnist", 0.95, "weight shuffled", "weight shuffled_output"),
    versus("mnist", 0.95, "weight refit", "weight shuffled"),
    versus("mnist", 0.8, "neuron refit", "neuron shuffled"),
    versus("mnist", 0.95, "random_weight random_values", "random_weight refit_output"),
    versus("fashion_mnist", 0.95, "random_weight refit_output", "random_weight random_values"),
]

NUMBER = r"(?<![\d.])\d\.\d{3}(?!\d)|−?\d+\.\d (?:points|%) \[[^]]*\]|\d+\.\d times"


def prose(text):
    for block in (r"```.*?```", r"<details>.*?</details>", r"^ *\|.*?$"):
        text = re.sub(block, "", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def test_every_number_of_the_prose_is_that_of_the_csv_files():
    assert re.findall(NUMBER, prose(README)) == EXPECTED
    assert re.findall(NUMBER, prose(DETAILS)) == EXPECTED_DETAILS


def test_every_figure_that_the_pages_show_is_there():
    for path, text in zip(tables.FILES, (README, DETAILS)):
        for name in re.findall(r"(?:src=\"|\]\()([\w/.-]+\.png)", text):
            assert (path.parent / name).is_file()


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
UNLABELED = [
    f"{method} {repair}" for method in METHODS for repair in ("none", "refit", "distilled")
]
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
    ours = [values(name, f"{method} none", level) for name, method, level in cells]
    leads = [float(tables.once(*cell)) - seeds for cell, seeds in zip(cells, ours)]
    assert sum(lead.mean() > 0 for lead in leads) == 13
    assert sum(lead.min() > 0 for lead in leads) == 7


def test_the_method_of_ones_own_works_as_shown():
    [code] = re.findall(r"```python\n(def largest_weight.*?)```", README, re.DOTALL)
    names = {**vars(network_pruning), "METHODS": {}}
    exec(code, names)
    network = network_of([np.array([[1.0, -3.0], [2.0, 0.5]]), None, None])
    [pruned], [sparser] = names["METHODS"]["largest_weight"](network, None, [0.5, 0.75], None)
    np.testing.assert_array_equal(pruned, [[1, 0], [0, 0.5]])
    np.testing.assert_array_equal(sparser, [[0, 0], [0, 0.5]])


def test_the_page_of_the_results_explains_every_column():
    for column in RESULTS:
        assert f"`{column}`" in DETAILS, column


def test_the_layer_of_ones_own_is_pruned_as_shown():
    [code] = re.findall(r"```python\n(from network_pruning import.*?)```", README, re.DOTALL)
    layer = network_pruning.keras.layers.Dense(10)
    layer.build([None, 20])
    expected = prune_weights(layer.get_weights()[0], 0.9)
    exec(code, {"layer": layer})
    np.testing.assert_array_equal(layer.get_weights()[0], expected)

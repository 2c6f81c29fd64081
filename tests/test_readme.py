"""README.md and plots/published/: their numbers are those of the CSV files, and the code runs."""

import re

import numpy as np
import pandas
import pytest
import tables
from tables import CONTROLS, REPAIRS, accuracy, control, gain, limits, reached, values, verdict

import network_pruning
from network_pruning import KEY, SPARSITIES, TITLES, prune_weights

README, DETAILS = (path.read_text() for path in tables.FILES)


@pytest.mark.parametrize("name", tables.DATASETS)
def test_every_published_seed_has_the_same_rows(name):
    rows = tables.RESULTS[name]
    assert list(rows["seed"].unique()) == list(range(10))
    assert rows["device"].nunique() == rows["versions"].nunique() == 1
    methods = {*tables.METHODS, "dense"}
    assert set(rows["method"]) == methods and set(rows["repair"]) == set(REPAIRS)
    assert not rows.duplicated(KEY).any()
    assert (rows.groupby(KEY[2:])["seed"].nunique() == 10).all()
    assert len(rows) == 10 * 5 * (1 + 9 * 7) + 10 * 9  # from scratch, only retrained


@pytest.mark.parametrize("name", tables.DATASETS)
def test_every_seed_of_the_controls_has_the_same_rows(name):
    rows = CONTROLS[CONTROLS["dataset"] == name]
    key = ["method", "sparsity", "control", "images", "epochs"]
    assert not rows.duplicated(["seed", *key]).any()
    assert (rows.groupby(key)["seed"].nunique() == 10).all()


def test_the_controls_start_from_the_networks_of_the_published_results():
    for name in TITLES:
        for method, sparsity in tables.distinct(tables.REPAIRED, "method", "sparsity"):
            refit = control(name, method, sparsity, "refit")
            published = values(name, method, sparsity, "refit")
            pandas.testing.assert_series_equal(refit, published)


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


def gap(better, worse):
    mean, _, rest = gain(better, worse).partition(" ")
    return f"{mean} points {rest}"


def versus(name, sparsity, better, worse):
    return gap(reached(name, better, sparsity), reached(name, worse, sparsity))


def both(*what):
    return [versus(name, *what) for name in TITLES]


def more_images(name, sparsity):
    """How far magnitude, refit, is ahead of SparseGPT with 5,000 images for both."""
    refit = control(name, "weight", sparsity, "refit", images=5000)
    return gap(refit, control(name, "sparsegpt", sparsity, "none", images=5000))


def equal_live(state):
    """How far a method is ahead of magnitude, refit, that has about as many live weights."""
    weight = "weight refit"
    return [gap(reached(name, state, 0.95), reached(name, weight, 0.97)) for name in TITLES]


def decided(epochs):
    """In how many networks of the controls refit is ahead of distillation, and behind it."""
    ends = []
    for cell in tables.distinct(tables.REPAIRED, "dataset", "method", "sparsity"):
        distilled = control(*cell, "distilled", epochs=epochs)
        ends.append(limits(control(*cell, "refit"), distilled)[1:])
    counts = (sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends))
    return [f"{count} of {len(ends)}" for count in counts]


def fastest(name, repair, method):
    level = tables.within_a_point(name, method, repair)
    return f"{tables.speedup(name, method, level)} times"


COLLAPSED = values("mnist", "weight", 0.95)
# Every number of the prose that comes from the CSV files, in the order in which it appears.
EXPECTED = [
    *(accuracy("mnist", *key) for key in (["dense"], ["weight", 0.8], ["weight", 0.95])),
    *(accuracy("fashion_mnist", *key) for key in (["dense"], ["weight", 0.6], ["weight", 0.95])),
    *(accuracy(name, "weight", 0.95, "refit") for name in TITLES),
    *(accuracy(name, "weight", 0.95, "retrain") for name in TITLES),
    accuracy("mnist", "neuron", 0.8),
    tables.share("mnist", "neuron", 0.8),
    accuracy("mnist", "matched_weight", 0.8),
    versus("mnist", 0.8, "matched_weight refit", "neuron refit"),
    fastest("mnist", "refit", "neuron"),
    fastest("mnist", "retrain", "neuron"),
    fastest("mnist", "retrain", "scratch"),
    versus("mnist", 0.95, "scaled_weight none", "weight none"),
    versus("mnist", 0.95, "weight refit", "scaled_weight refit"),
    versus("mnist", 0.95, "weight refit", "sparsegpt none"),
    versus("mnist", 0.95, "weight refit", "sparsegpt refit"),
    *(f"{accuracy:.3f}" for accuracy in (COLLAPSED.min(), COLLAPSED.max())),
    gap(values("mnist", "dense"), values("mnist", "weight", 0.5)),
    gap(values("mnist", "dense"), values("mnist", "random_weight", 0.5)),
    *both(0.95, "weight no_bias", "weight none"),
    versus("fashion_mnist", 0.95, "weight refit", "weight none"),
    accuracy("mnist", "random_weight", 0.8),
    accuracy("mnist", "random_weight", 0.8, "refit_output"),
    versus("mnist", 0.8, "random_weight refit_output", "random_weight random_values"),
    versus("mnist", 0.95, "random_weight refit_output", "random_weight random_values"),
]
EXPECTED_DETAILS = [
    *both(0.95, "weight refit", "sparsegpt refit"),
    *(more_images(name, 0.95) for name in TITLES),
    versus("mnist", 0.95, "scaled_weight none", "weight none"),
    versus("mnist", 0.95, "scaled_weight no_bias", "weight no_bias"),
    *both(0.99, "scaled_weight refit", "weight refit"),
    *both(0.95, "weight refit", "random_weight refit"),
    *equal_live("scaled_weight refit"),
    *equal_live("sparsegpt refit"),
    *both(0.99, "gradual_scaled refit", "scaled_weight refit"),
    *both(0.99, "gradual_scaled refit", "scaled_weight refit_again"),
    *both(0.99, "gradual_scaled refit", "scaled_weight distilled"),
    versus("digits", 0.9, "weight none", "scaled_weight none"),
    versus("digits", 0.9, "weight refit", "scaled_weight refit"),
    versus("mnist", 0.99, "random_weight refit_output", "random_weight refit"),
    versus("fashion_mnist", 0.7, "matched_weight retrain", "neuron retrain"),
    versus("mnist", 0.8, "matched_weight no_bias", "neuron no_bias"),
    *both(0.95, "scratch retrain", "neuron retrain"),
    *decided(10),
    *decided(40),
    versus("mnist", 0.95, "weight shuffled", "weight shuffled_output"),
    versus("mnist", 0.95, "weight refit", "weight shuffled"),
    versus("mnist", 0.8, "neuron refit", "neuron shuffled"),
    versus("mnist", 0.8, "random_weight refit", "random_weight shuffled"),
    *both(0.95, "weight rescaled", "weight none"),
    versus("mnist", 0.95, "random_weight random_values", "random_weight refit_output"),
    versus("fashion_mnist", 0.95, "random_weight refit_output", "random_weight random_values"),
]

NUMBER = r"(?<![\d.])\d\.\d{3}(?!\d)|−?\d+\.\d points \[[^]]*\]|\d+\.\d times|\d+ of 18"


def prose(text):
    for block in (r"```.*?```", r"<details>.*?</details>", r"^ *\|.*?$"):
        text = re.sub(block, "", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def test_every_number_of_the_prose_is_that_of_the_csv_files():
    assert re.findall(NUMBER, prose(README)) == EXPECTED
    # those of the benchmark are in no CSV file
    conclusions = prose(DETAILS).partition("## Speed of training")[0]
    assert re.findall(NUMBER, conclusions) == EXPECTED_DETAILS


def test_every_figure_that_the_pages_show_is_there():
    for path, text in zip(tables.FILES, (README, DETAILS)):
        for name in re.findall(r"(?:src=\"|\]\()([\w/.-]+\.png)", text):
            assert (path.parent / name).is_file()


@pytest.mark.parametrize(
    ("name", "first", "second", "repair"),
    [
        *((name, "matched_weight", "neuron", "refit") for name in TITLES),
        ("mnist", "matched_weight", "neuron", "retrain"),
        *((name, "neuron", "scratch", "retrain") for name in TITLES),
    ],
)
def test_two_are_equivalent_up_to_08_as_the_page_says(name, first, second, repair):
    for sparsity in SPARSITIES[:5]:
        pair = (values(name, method, sparsity, repair) for method in (first, second))
        assert verdict(*pair, (first, second)) == "equivalent"


@pytest.mark.parametrize("name", TITLES)
def test_the_number_of_weights_explains_more_of_the_gap_as_it_grows(name):
    for sparsity, low, high in ((0.6, 0.5, 1), (0.8, 0, 1 / 3)):
        methods = ("weight", "matched_weight", "neuron")
        weight, matched, neuron = (values(name, m, sparsity).mean() for m in methods)
        assert low < (matched - neuron) / (weight - neuron) < high


@pytest.mark.parametrize("name", TITLES)
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("weight refit", "sparsegpt none"),
        ("weight refit", "sparsegpt_best none"),
        ("weight refit", "weight_by_unit refit"),
        ("scaled_weight refit", "scaled_by_unit refit"),
        ("scaled_weight refit", "wanda refit"),
        ("gradual_scaled refit", "scaled_weight refit"),
        ("weight refit", "random_weight refit"),
    ],
)
def test_one_is_surely_ahead_as_the_page_says(name, better, worse):
    for sparsity in tables.LEVELS:
        _, low, _ = limits(reached(name, better, sparsity), reached(name, worse, sparsity))
        assert low > 0, sparsity


@pytest.mark.parametrize("name", TITLES)
def test_magnitude_times_input_is_not_ahead_once_refit_up_to_097(name):
    for sparsity in (level for level in SPARSITIES if level <= 0.97):
        for repair in ("refit", "retrain"):
            scaled = values(name, "scaled_weight", sparsity, repair)
            assert not limits(scaled, values(name, "weight", sparsity, repair))[1] > 0


def test_the_run_of_the_original_is_above_all_seeds_in_seven_cells():
    cells = [(*which, level) for which in tables.ORIGINAL for level in tables.SLOPE]
    assert sum(float(tables.once(*cell)) > values(*cell).max() for cell in cells) == 7


def test_the_method_of_ones_own_works_as_shown():
    [code] = re.findall(r"```python\n(def first_layer.*?)```", README, re.DOTALL)
    names = {**vars(network_pruning), "METHODS": {}}
    exec(code, names)
    kernels = [np.ones((2, 3)), np.ones((3, 2))]
    first, second = names["METHODS"]["first_layer"](kernels, None, 0.5, None)
    assert (np.count_nonzero(first), np.count_nonzero(second)) == (3, 6)


def test_the_page_of_the_results_explains_every_column():
    for column in tables.RESULTS["mnist"]:
        assert f"`{column}`" in DETAILS, column


def test_the_layer_of_ones_own_is_pruned_as_shown():
    [code] = re.findall(r"```python\n(from network_pruning import.*?)```", README, re.DOTALL)
    layer = network_pruning.keras.layers.Dense(10)
    layer.build([None, 20])
    expected = prune_weights(layer.get_weights()[0], 0.9)
    exec(code, {"layer": layer})
    np.testing.assert_array_equal(layer.get_weights()[0], expected)

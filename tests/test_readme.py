"""README.md and plots/published/: their numbers are those of the CSV files, and the code runs."""

import re

import numpy as np
import pandas
import pytest
from tables import (
    CONTROLS,
    DATASETS,
    FILES,
    LEVELS,
    METHODS,
    ORIGINAL,
    REPAIRED,
    REPAIRS,
    RESULTS,
    SLOPE,
    TABLES,
    accuracy,
    control,
    distinct,
    gain,
    limits,
    once,
    reached,
    render,
    share,
    speedup,
    values,
    verdict,
    within_a_point,
)

import network_pruning
from network_pruning import COLUMNS, KEY, SPARSITIES, TITLES, load_dataset

README, DETAILS = (path.read_text() for path in FILES)


# --------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("name", DATASETS)
def test_the_published_results_are_complete(name):
    rows = RESULTS[name]
    methods = [method for method in METHODS if method != "scratch"]
    pruned = [(m, s, repair) for m in methods for s in SPARSITIES for repair in REPAIRS]
    dense = [("dense", 0, repair) for repair in ("none", "no_bias", "retrain")]
    scratch = [("scratch", sparsity, "retrain") for sparsity in SPARSITIES]
    expected = sorted([*dense, *pruned, *scratch])
    assert sorted(set(rows["seed"])) == list(range(10))
    for _, of_seed in rows.groupby("seed"):
        assert sorted(of_seed[[*KEY][2:]].itertuples(index=False, name=None)) == expected
    assert rows["device"].nunique() == rows["versions"].nunique() == 1


@pytest.mark.parametrize("name", DATASETS)
def test_the_controls_are_complete(name):
    rows = CONTROLS[CONTROLS["dataset"] == name].drop(
        columns=["dataset", "live_fraction", "test_accuracy"]
    )
    expected = CONTROLS[CONTROLS["dataset"] == "mnist"]
    if name not in TITLES:  # digits have no repairs of their own
        expected = expected[~expected["method"].isin(METHODS) & (expected["images"] == 1000)]
    of_seeds = {seed: set(map(tuple, of.values[:, 1:])) for seed, of in rows.groupby("seed")}
    keys = set(map(tuple, expected[rows.columns[1:]].values))
    assert of_seeds == dict.fromkeys(range(10), keys)
    assert len(rows) == 10 * len(keys)


def test_the_controls_start_from_the_networks_of_the_published_results():
    for name in TITLES:
        for method, sparsity in distinct(REPAIRED, "method", "sparsity"):
            refit = control(name, method, sparsity, "refit")
            published = values(name, method, sparsity, "refit")
            pandas.testing.assert_series_equal(refit, published)


def test_an_interval_is_the_paired_one_of_student():
    better = pandas.Series([0.92, 0.93, 0.94], index=[0, 1, 2])
    worse = pandas.Series([0.92, 0.92, 0.92], index=[2, 1, 0])
    # 0, 1 and 2 points: a mean of 1, and 4.303 standard errors of 0.577 on either side
    assert limits(better, worse) == pytest.approx((1, -1.484, 3.484), abs=1e-3)
    assert gain(worse, better) == "\u22121.0 [\u22123.5, 1.5]"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ((0.1, 0.2, 0.3), "equivalent"),  # ahead for sure, but by less than the margin
        ((2.1, 2.2, 2.3), "first"),
        ((-2.1, -2.2, -2.3), "second"),
        ((-2, 1, 3), "undecided"),
    ],
)
def test_a_verdict_is_reached_by_the_intervals(points, expected):
    second = pandas.Series([0.9, 0.8, 0.7])
    first = second + pandas.Series(points) / 100
    assert verdict(first, second, ("first", "second")) == expected


# ---------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("text", [README, DETAILS], ids=["front", "details"])
def test_writing_the_tables_changes_nothing(text):
    assert render(text) == text


def test_every_table_is_generated_and_shown_once():
    shown = re.findall("<!-- table: (.+?) -->", README + DETAILS)
    assert sorted(shown) == sorted(TABLES)


# ----------------------------------------------------------------------------------------- prose


def gap(better, worse):
    """Mean paired difference with its 95 % interval, as the prose has it."""
    mean, _, rest = gain(better, worse).partition(" ")
    return f"{mean} points {rest}"


def lost(name, method, sparsity):
    """What networks as pruned have lost against the dense ones that they were made from."""
    return gap(values(name, "dense"), values(name, method, sparsity))


def versus(name, sparsity, better, worse):
    """How far one method with a repair is ahead of another, of any that were measured."""
    return gap(reached(name, better, sparsity), reached(name, worse, sparsity))


def more_images(name, sparsity):
    """How far magnitude, refit, is ahead of SparseGPT with 5,000 images for both."""
    refit = control(name, "weight", sparsity, "refit", images=5000)
    return gap(refit, control(name, "sparsegpt", sparsity, "none", images=5000))


def equal_live(name, state):
    """How far a method is ahead of magnitude, refit, that has about as many live weights."""
    return gap(reached(name, state, 0.95), reached(name, "weight refit", 0.97))


def decided(epochs):
    """In how many networks of the controls refit is ahead of distillation, and behind it."""
    ends = []
    for cell in distinct(REPAIRED, "dataset", "method", "sparsity"):
        distilled = control(*cell, "distilled", epochs=epochs)
        ends.append(limits(control(*cell, "refit"), distilled)[1:])
    counts = (sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends))
    return [f"{count} of {len(ends)}" for count in counts]


def fastest(name, repair, *methods):
    """Speed-up of the fastest networks within one point of dense that the methods make."""
    levels = {method: within_a_point(name, method, repair) for method in methods}
    return f"{max(float(speedup(name, *pair)) for pair in levels.items())} times"


def lowest(*key):
    """Lowest accuracy of a seed, as text."""
    return f"{values(*key).min():.3f}"


def highest(*key):
    """Highest accuracy of a seed, as text."""
    return f"{values(*key).max():.3f}"


# Every number of the prose that comes from the CSV files, in the order in which it appears.
EXPECTED = [
    accuracy("mnist", "dense"),
    accuracy("mnist", "weight", 0.8),
    accuracy("mnist", "weight", 0.95),
    accuracy("fashion_mnist", "dense"),
    accuracy("fashion_mnist", "weight", 0.6),
    accuracy("fashion_mnist", "weight", 0.95),
    accuracy("mnist", "weight", 0.95, "refit"),
    accuracy("fashion_mnist", "weight", 0.95, "refit"),
    accuracy("mnist", "weight", 0.95, "retrain"),
    accuracy("fashion_mnist", "weight", 0.95, "retrain"),
    accuracy("mnist", "neuron", 0.8),
    share("mnist", "neuron", 0.8),
    accuracy("mnist", "matched_weight", 0.8),
    versus("mnist", 0.8, "matched_weight refit", "neuron refit"),
    fastest("mnist", "refit", "neuron"),
    fastest("mnist", "retrain", "neuron"),
    fastest("mnist", "retrain", "scratch"),
    versus("mnist", 0.95, "scaled_weight none", "weight none"),
    versus("mnist", 0.95, "weight refit", "scaled_weight refit"),
    versus("mnist", 0.95, "weight refit", "sparsegpt none"),
    versus("mnist", 0.95, "weight refit", "sparsegpt refit"),
    lowest("mnist", "weight", 0.95),
    highest("mnist", "weight", 0.95),
    lost("mnist", "weight", 0.5),
    lost("mnist", "random_weight", 0.5),
    versus("mnist", 0.95, "weight no_bias", "weight none"),
    versus("fashion_mnist", 0.95, "weight no_bias", "weight none"),
    versus("fashion_mnist", 0.95, "weight refit", "weight none"),
    accuracy("mnist", "random_weight", 0.8),
    accuracy("mnist", "random_weight", 0.8, "refit_output"),
    versus("mnist", 0.8, "random_weight refit_output", "random_weight random_values"),
    versus("mnist", 0.95, "random_weight refit_output", "random_weight random_values"),
]
EXPECTED_DETAILS = [
    versus("mnist", 0.95, "weight refit", "sparsegpt refit"),
    versus("fashion_mnist", 0.95, "weight refit", "sparsegpt refit"),
    more_images("mnist", 0.95),
    more_images("fashion_mnist", 0.95),
    versus("mnist", 0.95, "scaled_weight none", "weight none"),
    versus("mnist", 0.95, "scaled_weight no_bias", "weight no_bias"),
    versus("mnist", 0.99, "scaled_weight refit", "weight refit"),
    versus("fashion_mnist", 0.99, "scaled_weight refit", "weight refit"),
    versus("mnist", 0.95, "weight refit", "random_weight refit"),
    versus("fashion_mnist", 0.95, "weight refit", "random_weight refit"),
    equal_live("mnist", "scaled_weight refit"),
    equal_live("fashion_mnist", "scaled_weight refit"),
    equal_live("mnist", "sparsegpt refit"),
    equal_live("fashion_mnist", "sparsegpt refit"),
    versus("mnist", 0.99, "gradual_scaled refit", "scaled_weight refit"),
    versus("fashion_mnist", 0.99, "gradual_scaled refit", "scaled_weight refit"),
    versus("mnist", 0.99, "gradual_scaled refit", "scaled_weight refit_again"),
    versus("fashion_mnist", 0.99, "gradual_scaled refit", "scaled_weight refit_again"),
    versus("mnist", 0.99, "gradual_scaled refit", "scaled_weight distilled"),
    versus("fashion_mnist", 0.99, "gradual_scaled refit", "scaled_weight distilled"),
    versus("digits", 0.9, "weight none", "scaled_weight none"),
    versus("digits", 0.9, "weight refit", "scaled_weight refit"),
    versus("mnist", 0.99, "random_weight refit_output", "random_weight refit"),
    versus("fashion_mnist", 0.7, "matched_weight retrain", "neuron retrain"),
    versus("mnist", 0.8, "matched_weight no_bias", "neuron no_bias"),
    versus("mnist", 0.95, "scratch retrain", "neuron retrain"),
    versus("fashion_mnist", 0.95, "scratch retrain", "neuron retrain"),
    decided(10)[0],
    decided(10)[1],
    decided(40)[0],
    decided(40)[1],
    versus("mnist", 0.95, "weight shuffled", "weight shuffled_output"),
    versus("mnist", 0.95, "weight refit", "weight shuffled"),
    versus("mnist", 0.8, "neuron refit", "neuron shuffled"),
    versus("mnist", 0.8, "random_weight refit", "random_weight shuffled"),
    versus("mnist", 0.95, "weight rescaled", "weight none"),
    versus("fashion_mnist", 0.95, "weight rescaled", "weight none"),
    versus("mnist", 0.95, "random_weight random_values", "random_weight refit_output"),
    versus("fashion_mnist", 0.95, "random_weight refit_output", "random_weight random_values"),
]

NUMBER = r"(?<![\d.])\d\.\d{3}(?!\d)|−?\d+\.\d points \[[^]]*\]|\d+\.\d times|\d+ of 18"


def prose(text):
    """A text without tables, code and what is folded."""
    for block in (r"```.*?```", r"<details>.*?</details>", r"^ *\|.*?$"):
        text = re.sub(block, "", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def test_every_number_of_the_prose_is_that_of_the_csv_files():
    assert re.findall(NUMBER, prose(README)) == EXPECTED
    # those of the benchmark are in no CSV file
    conclusions = prose(DETAILS).partition("## Speed of training")[0]
    assert re.findall(NUMBER, conclusions) == EXPECTED_DETAILS


def test_every_figure_that_the_pages_show_is_there():
    for path, text in zip(FILES, (README, DETAILS)):
        for name in re.findall(r"(?:src=\"|\]\()([\w/.-]+\.png)", text):
            assert (path.parent / name).is_file()


@pytest.mark.parametrize("name", TITLES)
def test_matched_weights_and_neurons_are_equivalent_as_the_readme_says(name):
    def state(sparsity, repair):
        pair = (values(name, m, sparsity, repair) for m in ("matched_weight", "neuron"))
        return verdict(*pair, ("weights", "neurons"))

    levels = [sparsity for sparsity in SPARSITIES if sparsity <= 0.8]
    assert {state(sparsity, "refit") for sparsity in levels} == {"equivalent"}
    retrained = {state(sparsity, "retrain") for sparsity in levels}
    assert (retrained == {"equivalent"}) == (name == "mnist")


@pytest.mark.parametrize("name", TITLES)
def test_the_number_of_weights_explains_more_of_the_gap_as_it_grows(name):
    def left(sparsity):
        methods = ("weight", "matched_weight", "neuron")
        weight, matched, neuron = (values(name, m, sparsity).mean() for m in methods)
        return (matched - neuron) / (weight - neuron)

    assert left(0.6) > 0.5
    assert left(0.8) < 1 / 3


def test_scratch_and_retrained_neurons_hardly_differ_up_to_08():
    for name in TITLES:
        for sparsity in (level for level in SPARSITIES if level <= 0.8):
            pair = [values(name, method, sparsity, "retrain") for method in ("neuron", "scratch")]
            assert verdict(*pair, ("neurons", "scratch")) == "equivalent"


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
    for sparsity in LEVELS:
        _, low, _ = limits(reached(name, better, sparsity), reached(name, worse, sparsity))
        assert low > 0, sparsity


@pytest.mark.parametrize("name", TITLES)
def test_magnitude_times_input_is_not_ahead_once_refit_up_to_097(name):
    for sparsity in (level for level in SPARSITIES if level <= 0.97):
        for repair in ("refit", "retrain"):
            scaled = values(name, "scaled_weight", sparsity, repair)
            assert not limits(scaled, values(name, "weight", sparsity, repair))[1] > 0


@pytest.mark.parametrize("name", TITLES)
def test_steps_gain_little_for_magnitude_and_nothing_sure_for_neurons(name):
    for sparsity in LEVELS:
        pairs = [
            [reached(name, f"{way}{method} refit", sparsity) for way in ("gradual_", "")]
            for method in ("weight", "neuron")
        ]
        weight, (_, low, high) = (limits(*pair) for pair in pairs)
        assert low <= 0 <= high
        if sparsity <= 0.97:
            assert abs(weight[0]) < 2
        elif name == "mnist":
            assert weight[2] < 0


def test_the_run_of_the_original_is_above_all_seeds_in_seven_cells():
    above = 0
    for name, method in ORIGINAL:
        for sparsity in SLOPE:
            above += float(once(name, method, sparsity)) > values(name, method, sparsity).max()
    assert above == 7


# ------------------------------------------------------------------------------------------ code


def test_the_method_of_ones_own_works_as_shown():
    [code] = re.findall(r"```python\n(def first_layer.*?)```", README, re.DOTALL)
    names = {**vars(network_pruning), "METHODS": {}}
    exec(code, names)
    kernels = [np.ones((2, 3)), np.ones((3, 2))]
    first, second = names["METHODS"]["first_layer"](kernels, None, 0.5, None)
    assert (np.count_nonzero(first), np.count_nonzero(second)) == (3, 6)


def test_the_page_of_the_results_explains_every_column():
    for column in COLUMNS:
        assert f"`{column}`" in DETAILS, column


def test_67_pixels_of_mnist_are_always_0(real_data):
    images = load_dataset("mnist", real_data).train_images
    assert np.count_nonzero(np.max(images, axis=0) == 0) == 67

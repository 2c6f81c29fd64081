"""The README: its numbers are those of the CSV files in plots/, and its code runs."""

import re

import numpy as np
import pandas
import pytest
import tensorflow as tf
from conftest import ROOT
from scipy import stats

from network_pruning import COLUMNS, SPARSITIES, load_dataset

README = (ROOT / "README.md").read_text()
PLOTS = ROOT / "plots"
DATASETS = ("mnist", "fashion_mnist")
LEVELS = (0, *SPARSITIES)
ORIGINAL = {  # test accuracy of one run of the original's own script, at LEVELS
    ("mnist", "weight"): ".979 .980 .981 .981 .980 .979 .955 .533 .196 .097",
    ("mnist", "neuron"): ".979 .980 .977 .974 .967 .923 .270 .097 .097 .097",
    ("fashion_mnist", "weight"): ".886 .886 .887 .887 .882 .867 .737 .421 .256 .106",
    ("fashion_mnist", "neuron"): ".886 .887 .886 .878 .734 .500 .136 .100 .100 .100",
}
ONE_SHOT = ("weight", "neuron", "matched_weight", "random_weight", "random_neuron")
SLOPE = (0.7, 0.8, 0.9, 0.95, 0.97)
RESULTS = {(folder, name): pandas.read_csv(PLOTS / folder / f"{name}.csv")
           for folder in ("", "retrained") for name in DATASETS}  # fmt: skip


def runs(name, method, sparsity, column="test_accuracy", epochs=0):
    """A column's value in each run of a data set, method and sparsity; one-shot ones of 10 runs."""
    rows = RESULTS["retrained" if epochs else "", name]
    chosen = rows[(rows["method"] == method) & (rows["retrain_epochs"] == epochs)]
    return chosen[chosen["sparsity"] == sparsity].sort_values("run")[column].to_numpy()


def acc(*key, **options):
    """Mean accuracy, as text."""
    return f"{runs(*key, **options).mean():.3f}"


def cell(*key, **options):
    """Mean and standard deviation over runs, in the short form of the tables."""
    values = runs(*key, **options)
    return f"{values.mean():.3f}±{values.std(ddof=1):.3f}".replace("0.", ".")


def fast(*key, **options):
    """Mean speed-up, as text."""
    return f"{runs(*key, column='speedup', **options).mean():.1f}"


def times(*key):
    """Mean speed-up of one-shot pruned networks, as the prose has it."""
    return f"{fast(*key)} times"


def live(name, method, sparsity):
    """Mean share of the weights that can act, in percent."""
    return f"{100 * runs(name, method, sparsity, 'live_fraction').mean():.1f} %"


def interval(better, worse):
    """Mean paired difference over runs in points, with its 95 % interval (Student), as text."""
    differences = 100 * (better - worse)
    mean = differences.mean()
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    text = f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]"
    return text.replace("-0.0", "0.0").replace("-", "−")


def gap(better, worse):
    """The same for the prose."""
    mean, _, rest = interval(better, worse).partition(" ")
    return f"{mean} points {rest}"


def markdown(heads, rows, first="---:"):
    """A table; all columns are aligned to the right, but the first as it is told."""
    lines = [heads, [first] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("|".join(["", *line, ""]) for line in lines)


def results_table(name):
    """The table of a data set's results."""
    heads = ["sparsity", "weights", "neurons", "matched weights", "random weights"]
    heads += ["random neurons", "weights, retrained", "neurons, retrained", "from scratch"]
    rows = []
    for sparsity in LEVELS:
        cells = [cell(name, method, sparsity) for method in ONE_SHOT]
        cells += [cell(name, m, sparsity, epochs=1) for m in ("weight", "neuron", "scratch")]
        rows.append([f"{sparsity:g}", *cells, fast(name, "neuron", sparsity)])
    return markdown([*heads, "neurons' speed-up"], rows)


def original_table():
    """The original's run beside the means here, where the curves fall."""
    heads = ["sparsity"]
    for title in ("MNIST", "Fashion-MNIST"):
        for what in ("weights", "neurons"):
            heads += [f"{title} {what}, original", f"{title} {what}, here"]
    rows = []
    for sparsity in SLOPE:
        rows.append([f"{sparsity:g}"])
        for name, method in ORIGINAL:
            published = ORIGINAL[name, method].split()[LEVELS.index(sparsity)]
            rows[-1] += [published, cell(name, method, sparsity)]
    return markdown(heads, rows)


def sd(*key, **options):
    """Standard deviation over runs, as text."""
    return f"{runs(*key, **options).std(ddof=1):.3f}"


def dense_runs(name, epochs):
    """Accuracy of the dense networks that the one-shot or the retrained results come from."""
    rows = RESULTS["retrained" if epochs else "", name]
    rows = rows[(rows["sparsity"] == 0) & (rows["retrain_epochs"] == 0)]
    return rows.drop_duplicates("run").sort_values("run")["test_accuracy"].to_numpy()


def lost(name, method, sparsity, epochs=0):
    """What pruned networks have lost against the dense ones they were made from."""
    return gap(dense_runs(name, epochs), runs(name, method, sparsity, epochs=epochs))


def of_runs(name, sparsity, epochs=0):
    """In how many runs neuron-pruned networks are within one point of the dense one."""
    lacking = dense_runs(name, epochs) - runs(name, "neuron", sparsity, epochs=epochs)
    return f"{(lacking < 0.01 + 1e-9).sum()} of {len(lacking)} runs"


def leads_table(levels, leads):
    """How far some networks lead others, in points, on both data sets at some levels."""
    heads = [f"{title} {level:.0%}" for title in ("MNIST", "Fashion-MNIST") for level in levels]
    rows = [
        [lead, *(interval(*of(name, level)) for name in DATASETS for level in levels)]
        for lead, of in leads.items()
    ]
    return markdown(["lead in points", *heads], rows, first="---")


def over_neurons(method, column="test_accuracy"):
    """The values of a method and of neuron pruning in each run."""
    return lambda name, level: [runs(name, m, level, column) for m in (method, "neuron")]


def over_dense(method):
    """The accuracy of a method's retrained networks, and of the dense ones they come from."""
    return lambda name, level: [runs(name, method, level, epochs=1), dense_runs(name, 1)]


def over_scratch(name, level):
    """The accuracy of neuron-pruned, retrained networks, and of fresh ones of their sizes."""
    return [runs(name, method, level, epochs=1) for method in ("neuron", "scratch")]


ONE_SHOT_LEADS = {
    "weights over neurons": over_neurons("weight"),
    "matched weights over neurons": over_neurons("matched_weight"),
    "the same without the output bias": over_neurons("matched_weight", "unbiased_accuracy"),
}
RETRAINED_LEADS = {
    "weights, retrained, over dense": over_dense("weight"),
    "neurons, retrained, over dense": over_dense("neuron"),
    "neurons, retrained, over scratch": over_scratch,
}


def test_the_tables_of_leads_are_those_of_the_csv_files():
    assert leads_table((0.7, 0.8, 0.9), ONE_SHOT_LEADS) in README
    assert leads_table((0.8, 0.9, 0.95), RETRAINED_LEADS) in README


# Every number of the prose that comes from plots/, in the order in which it appears.
EXPECTED = [
    acc("mnist", "weight", 0),
    acc("mnist", "weight", 0.8),
    acc("mnist", "weight", 0.95),
    acc("mnist", "neuron", 0.5),
    acc("mnist", "neuron", 0.9),
    acc("mnist", "weight", 0.95),
    acc("mnist", "weight", 0.95, column="unbiased_accuracy"),
    acc("mnist", "weight", 0.95, epochs=1),
    acc("mnist", "neuron", 0.9, epochs=1),
    times("mnist", "neuron", 0.9),
    lost("mnist", "weight", 0.8),
    lost("fashion_mnist", "weight", 0.8),
    lost("mnist", "neuron", 0.5),
    lost("fashion_mnist", "neuron", 0.5),
    acc("mnist", "weight", 0.9),
    acc("mnist", "weight", 0.95),
    sd("mnist", "weight", 0),
    sd("mnist", "weight", 0.95),
    live("mnist", "neuron", 0.8),
    live("mnist", "weight", 0.8),
    lost("mnist", "random_weight", 0.5),
    lost("fashion_mnist", "random_weight", 0.5),
    lost("mnist", "weight", 0.5),
    lost("fashion_mnist", "weight", 0.5),
    acc("mnist", "random_weight", 0.8),
    acc("mnist", "random_weight", 0.8, column="unbiased_accuracy"),
    acc("mnist", "weight", 0, epochs=1),
    acc("fashion_mnist", "weight", 0, epochs=1),
    times("mnist", "neuron", 0.5),
    of_runs("mnist", 0.5),
    times("fashion_mnist", "neuron", 0.25),
    of_runs("fashion_mnist", 0.25),
    times("mnist", "neuron", 0.8),
    of_runs("mnist", 0.8, 1),
    times("mnist", "neuron", 0.9),
    of_runs("mnist", 0.9, 1),
    times("fashion_mnist", "neuron", 0.6),
    of_runs("fashion_mnist", 0.6, 1),
    times("fashion_mnist", "neuron", 0.8),
    of_runs("fashion_mnist", 0.8, 1),
    times("mnist", "weight", 0.9),
    times("mnist", "weight", 0.99),
]
NUMBER = (
    r"(?<![\d.])\d\.\d{3}(?!\d)|−?\d+\.\d points \[[^]]*\]|\d+\.\d %|\d+\.\d times|\d+ of \d+ runs"
)


def test_every_number_of_the_prose_is_that_of_the_csv_files():
    introduction = README.partition("## What it does")[0]
    answers = README.partition("### What is striking?")[2].partition("## Your own")[0]
    prose = " ".join((introduction + answers).split())
    assert re.findall(NUMBER, prose) == EXPECTED


@pytest.mark.parametrize("name", DATASETS)
def test_the_tables_of_results_are_those_of_the_csv_files(name):
    assert results_table(name) in README


def test_the_table_of_the_original_is_up_to_date():
    assert original_table() in README


@pytest.mark.parametrize("name", DATASETS)
def test_the_runs_that_both_commands_have_agree(name):
    both = []
    for folder in ("", "retrained"):
        rows = pandas.read_csv(PLOTS / folder / f"{name}.csv", dtype=str).drop(columns="speedup")
        shared = (rows["retrain_epochs"] == "0") & (rows["run"].astype(int) < 5)
        both.append(rows[shared].to_csv(index=False))
    assert both[0] == both[1]


def test_every_figure_that_the_readme_shows_is_in_plots():
    for path in re.findall(r"(?:src=\"|\]\()(plots/[\w/.-]+\.png)", README):
        assert (ROOT / path).is_file()


# ------------------------------------------------------------------------------------------ code


def snippet(first_line):
    """The Python code of the README that begins with a line."""
    [code] = re.findall(rf"```python\n({re.escape(first_line)}.*?)```", README, re.DOTALL)
    return code


def test_the_snippet_prunes_a_model_with_convolutions_normalization_and_a_softmax_layer():
    keras = tf.keras
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu", bias_initializer="ones"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(20, activation="relu", bias_initializer="ones"),
            keras.layers.Dense(10),
            keras.layers.Softmax(),
        ]
    )
    exec(snippet("from tensorflow"), {"model": model})
    conv, _, _, dense, classifier, _ = model.layers
    for layer, units in ((conv, 3), (dense, 10)):
        kernel, bias = layer.get_weights()
        gone = ~kernel.reshape(-1, kernel.shape[-1]).any(axis=0)
        assert gone.sum() == units
        np.testing.assert_array_equal(bias, np.where(gone, 0, 1))
    assert classifier.get_weights()[0].all()
    assert np.isfinite(model(np.ones((2, 8, 8, 1), np.float32))).all()


def test_the_snippet_for_refitting_recovers_what_pruning_breaks(capsys):
    keras = tf.keras
    digits = load_dataset("digits", None)
    images, labels = digits.train_images.numpy(), digits.train_targets.numpy().argmax(axis=1)
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(units, "relu") for units in (300, 100)]
    model = keras.Sequential(
        [keras.Input([64]), *hidden, keras.layers.Dropout(0.1), keras.layers.Dense(10, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, epochs=10, verbose=0)
    before = [layer.get_weights() for layer in hidden]
    test = (digits.test_images, digits.test_labels)
    dense = model.evaluate(*test, verbose=0)[1]
    names = {"model": model, "images": images, "test_images": test[0], "test_labels": test[1]}
    exec(snippet("import keras"), names)
    assert model.evaluate(*test, verbose=0)[1] > dense - 0.03
    for layer, (kernel, bias) in zip(hidden, before):
        pruned, same = layer.get_weights()
        assert np.count_nonzero(pruned == 0) == round(0.9 * kernel.size)
        np.testing.assert_array_equal(same, bias)
        layer.set_weights([np.where(pruned == 0, 0, kernel), bias])
    assert model.evaluate(*test, verbose=0)[1] < dense - 0.1  # without refitting
    assert capsys.readouterr().out.count("accuracy") >= 2


def test_the_readme_lists_every_option_and_column():
    source = (ROOT / "network_pruning.py").read_text()
    for option in re.findall(r'add\("(--[\w-]+)"', source):
        assert f"`{option}" in README, option
    for column in COLUMNS:
        assert f"`{column}`" in README, column


def test_67_pixels_of_mnist_are_always_0(real_data):
    images = load_dataset("mnist", real_data).train_images
    assert np.count_nonzero(np.max(images, axis=0) == 0) == 67

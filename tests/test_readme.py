"""README.md and plots/published/: their numbers are those of the CSV files, and the code runs."""

import itertools
import re

import controls
import numpy as np
import pandas
import pytest
import tables
from tables import LENET, REPLICATION, RESULTS, TIMES, gain, limits, mean, values, verdict

import network_pruning
from network_pruning import TITLES, keras, load_dataset, network_of, prune_weights

README, DETAILS = (path.read_text() for path in tables.FILES)
METHOD, LOOP = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LENETS = [f"{LENET} {name}" for name in TITLES]
REPLICATIONS = [f"{REPLICATION} {name}" for name in TITLES]
NETWORKS = [*TITLES, *LENETS]
EVERYWHERE = [*NETWORKS, *REPLICATIONS]
GRADUAL, RETRAINED = "gradual_weight refit", "gradual_weight retrain"
ONE_SHOT = "one_shot_saliencies_layer refit"
FEWER = ("saliency_weight refit", 0.97)  # weights than neurons at 0.9
USUAL = values("mnist", GRADUAL, 0.99)  # with 1,000 images


def test_an_interval_is_the_paired_one_of_student():
    better = pandas.Series([0.92, 0.93, 0.94], index=[0, 1, 2])
    worse = pandas.Series([0.92, 0.92, 0.92, 0.5], index=[2, 1, 0, 3])
    # 0, 1 and 2 points: a mean of 1, and 4.303 standard errors of 0.577 on either side
    assert limits(better, worse) == pytest.approx((1, -1.484, 3.484), abs=1e-3)
    assert gain(worse, better) == "\u22121.0 [\u22123.5, 1.5]"


def test_the_tables_are_those_of_the_csv_files_each_is_shown_once_and_every_column_explained():
    assert tables.render(README) == README and tables.render(DETAILS) == DETAILS
    shown = re.findall("<!-- table: (.+?) -->", README + DETAILS)
    assert sorted(shown) == sorted(tables.TABLES)
    columns = {*RESULTS, *TIMES.reset_index()}
    assert not [column for column in columns if f"`{column}`" not in DETAILS]


def lead(better, worse):
    return gain(better, worse).replace(" ", " points ", 1)


def versus(names, sparsity, better, *worse):
    """How far one state is ahead of others, on each data set, as in the text."""
    pairs = itertools.product(worse, names)
    return [lead(values(n, better, sparsity), values(n, other, sparsity)) for other, n in pairs]


def lost(name, state, sparsity):
    return lead(values(name, "dense none"), values(name, state, sparsity))


def error(name, state, sparsity):
    accuracy = values(name, state, sparsity)
    return gain(pandas.Series(1, accuracy.index), accuracy).replace(" ", "% ", 1)


# Every number of the prose that comes from the CSV files, in the order in which it appears.
EXPECTED = [
    *(mean(name, GRADUAL, 0.99) for name in TITLES),
    *(mean(name, "dense none") for name in TITLES),
    *(mean(name, f"weight {repair}", 0.99) for repair in ("refit", "retrain") for name in TITLES),
    *(lost(name, GRADUAL, 0.99) for name in TITLES),
    *versus(TITLES, 0.99, GRADUAL, "weight retrain"),
    *versus(["mnist"], 0.99, "saliency_weight refit", "weight refit"),
    *versus(["mnist"], 0.99, GRADUAL, "saliency_weight refit"),
    *(mean("mnist", f"weight {repair}", 0.95) for repair in ("none", "refit")),
    *versus(["mnist"], 0.8, "matched_weight refit", "neuron refit"),
    f"{tables.timed('mnist', 'neuron refit', 0.8):.2g} times",
    *versus(TITLES, 0.95, "weight no_bias", "weight none"),
    *versus(["fashion_mnist"], 0.95, "weight refit", "weight none"),
    lost("mnist", "weight none", 0.5),
    lost("mnist", "random_weight none", 0.5),
]
EXPECTED_DETAILS = [
    *versus(NETWORKS, 0.99, GRADUAL, "weight refit"),
    *versus(TITLES, 0.99, GRADUAL, "saliency_weight refit"),
    *versus(NETWORKS, 0.99, GRADUAL, "weight retrain"),
    *versus(TITLES, 0.99, GRADUAL, "one_shot_magnitude_together retrain"),
    *versus(TITLES, 0.99, GRADUAL, "saliency_weight retrain"),
    *versus(TITLES, 0.95, "weight retrain", GRADUAL),
    *versus(REPLICATIONS, 0.99, GRADUAL, "weight refit", "weight retrain"),
    *versus(TITLES, 0.99, RETRAINED, GRADUAL, "weight retrain", "saliency_weight retrain"),
    *versus(TITLES, 0.99, RETRAINED, "rounds_retrained retrain"),
    *versus(TITLES, 0.95, "rounds_retrained retrain", RETRAINED),
    *(mean(n, "dense none") for n in ("mnist", LENETS[0], "fashion_mnist", LENETS[1], "digits")),
    *versus(TITLES, 0.95, "saliency_weight none", "weight none"),
    *versus(["digits"], 0.95, "weight none", "saliency_weight none"),
    *versus(["digits"], 0.95, "weight centered", "saliency_weight centered"),
    lead(*(values("digits", f"{m} none", 0.95).head(5) for m in ("weight", "saliency_weight"))),
    *versus(["mnist"], 0.99, ONE_SHOT, "one_shot_magnitude_layer refit"),
    *versus(["mnist"], 0.99, "rounds_saliencies_layer refit", ONE_SHOT),
    *versus(["mnist"], 0.99, "one_shot_magnitude_layer refit", "rounds_magnitude_layer refit"),
    *versus(LENETS[:1], 0.99, ONE_SHOT, "one_shot_magnitude_layer refit"),
    *versus(LENETS[:1], 0.99, "rounds_saliencies_layer refit", ONE_SHOT),
    *versus(LENETS[:1], 0.99, "rounds_magnitude_layer refit", "one_shot_magnitude_layer refit"),
    *versus(["mnist"], 0.99, ONE_SHOT, "one_shot_saliencies_together refit"),
    *versus(LENETS[:1], 0.99, "one_shot_saliencies_together refit", ONE_SHOT),
    *versus(LENETS[:1], 0.99, GRADUAL, "rounds_saliencies_layer refit"),
    *versus(TITLES, 0.99, ONE_SHOT, "sparsegpt refit"),
    *versus(TITLES, 0.97, "rounds_obs_response_together refit", GRADUAL),
    *versus(TITLES, 0.99, "rounds_obs_response_together refit", GRADUAL),
    *versus(TITLES, 0.99, "gradual_weight labeled", "gradual_weight distilled"),
    *versus(TITLES, 0.95, "gradual_weight labeled", "gradual_weight distilled"),
    *(lead(USUAL, values("mnist", GRADUAL, 0.99, images=images)) for images in (100, 300)),
    lead(values("mnist", GRADUAL, 0.99, images=5000), USUAL),
    *versus(TITLES, 0.99, "random_weight refit_output", "weight refit_output", "weight refit"),
    *versus(TITLES, 0.99, "weight refit", "random_weight refit"),
    *versus(LENETS, 0.99, "random_weight refit", "weight refit"),
    *(mean("mlpnet", f"weight {repair}", s) for repair in ("none", "refit") for s in (0.95, 0.98)),
    *(mean("mlpnet", GRADUAL, sparsity) for sparsity in (0.95, 0.98)),
    mean("mlpnet", "rounds_saliencies_layer refit", 0.98),
    *(error(LENETS[0], GRADUAL, sparsity) for sparsity in (0.97, 0.99)),
    *(error(LENETS[0], RETRAINED, sparsity) for sparsity in (0.97, 0.99)),
    *versus(TITLES, 0.95, "weight no_bias", "weight none"),
    *versus(["mnist"], 0.99, "random_weight refit_output", "random_weight refit"),
    *versus(LENETS, 0.8, "matched_weight refit", "neuron refit"),
    *versus(TITLES, 0.9, "saliency_neuron none", "neuron none"),
    *versus(TITLES, 0.9, "saliency_neuron refit", "neuron refit"),
    *(lead(values(n, *FEWER), values(n, "saliency_neuron refit", 0.9)) for n in TITLES),
    *versus(TITLES, 0.95, "scratch retrain", "neuron retrain"),
    *(
        f"{end(values(name, state, sparsity)):.3f}"
        for state, sparsity in (("weight none", 0.95), ("neuron none", 0.8))
        for name in TITLES
        for end in (min, max)
    ),
]

NUMBER = r"(?<![\d.])\d\.\d{3}(?!\d)|−?\d+\.\d(?: points|%) \[[^]]*\]|\d+(?:\.\d)? times"


def prose(text):
    code_or_table = r"```.*?```|^ *\|.*?$"
    return " ".join(re.sub(code_or_table, "", text, flags=re.DOTALL | re.MULTILINE).split())


def test_every_number_of_the_prose_is_that_of_the_csv_files():
    assert re.findall(NUMBER, prose(README)) == EXPECTED
    assert re.findall(NUMBER, prose(DETAILS)) == EXPECTED_DETAILS


@pytest.mark.parametrize("name", TITLES)
def test_two_are_equivalent_as_the_page_says(name):
    for sparsity in (0.25, 0.5, 0.6, 0.7, 0.8):
        pair = (values(name, f"{way} retrain", sparsity) for way in ("scratch", "neuron"))
        assert verdict(*pair, ("scratch", "neuron")) == "equivalent"


# all without labels but variants of gradual pruning
UNLABELED = [
    f"{method} {repair}"
    for method in ("weight", "saliency_weight", "random_weight", *controls.OTHERS)
    for repair in ("none", "refit")
]
UNLABELED += [f"{name} refit" for name in controls.ABLATION if "rounds_saliencies" not in name]
UNLABELED += ["rounds_obs_layer refit", "random_weight refit_output", "weight distilled"]
LEADS = [  # data sets, sparsities, the better state, worse ones
    (TITLES, (0.97, 0.99), GRADUAL, UNLABELED),
    (EVERYWHERE, (0.97, 0.99), GRADUAL, ["weight refit", "saliency_weight refit"]),
    (EVERYWHERE, [0.99], GRADUAL, ["weight retrain"]),
    (TITLES, [0.99], RETRAINED, ["rounds_retrained retrain"]),
    (EVERYWHERE, [0.99], RETRAINED, ["weight retrain"]),
    (["digits"], [0.99], "rounds_saliencies_layer refit", [ONE_SHOT, "weight refit"]),
    (["digits"], [0.9], "neuron refit", ["saliency_neuron refit"]),
]


@pytest.mark.parametrize(("names", "levels", "better", "worse"), LEADS)
def test_one_is_surely_ahead_as_the_page_says(names, levels, better, worse):
    for name, sparsity, state in itertools.product(names, levels, worse):
        _, low, _ = limits(values(name, better, sparsity), values(name, state, sparsity))
        assert low > 0, (name, sparsity, state)


def test_the_method_of_the_front_page_removes_the_largest_weights():
    names = {**vars(network_pruning), "METHODS": {}}
    exec(METHOD, names)
    network = network_of([np.array([[1.0, -3.0], [2.0, 0.5]]), None, None])
    [pruned], [sparser] = names["METHODS"]["largest_weight"](network, None, [0.5, 0.75], None)
    np.testing.assert_array_equal(pruned, [[1, 0], [0, 0.5]])
    np.testing.assert_array_equal(sparser, [[0, 0], [0, 0.5]])


def test_the_loop_of_the_front_page_prunes_and_refits_a_keras_model_with_biases():
    """As the page says: about 0.9, where pruning alone leaves 0.5 to 0.75."""
    dataset = load_dataset("digits")
    layers = [keras.layers.Dense(units, "relu") for units in (300, 100)]
    model = keras.Sequential([keras.Input([64]), *layers, keras.layers.Dense(10)])
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    model.fit(dataset.train_images, dataset.train_targets, epochs=30, verbose=0)

    def accuracy():
        return np.mean(model(dataset.test_images).numpy().argmax(axis=1) == dataset.test_labels)

    trained = model.get_weights()
    exec(LOOP, {"model": model, "images": dataset.train_images.numpy()[:1000]})
    refitted = accuracy()
    for layer, kernel in zip(layers, trained[::2]):
        left = layer.get_weights()[0] != 0
        np.testing.assert_array_equal(left, prune_weights(kernel, 0.95) != 0)
        layer.set_weights([np.where(left, kernel, 0), layer.get_weights()[1]])
    model.layers[-1].set_weights(trained[-2:])
    assert accuracy() + 0.05 < refitted

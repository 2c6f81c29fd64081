"""The tables of README.md and plots/published/README.md, made from the published CSV files.

    python tests/tables.py --write

replaces what stands between each `<!-- table: name -->` and the next `<!-- end -->`. Without
--write it only says which files that would change. The test of the prose uses the same helpers.
"""

import argparse
import functools
import re
import sys
from pathlib import Path

import pandas
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from network_pruning import SPARSITIES, STYLES, TITLES

PUBLISHED = ROOT / "plots" / "published"
FILES = (ROOT / "README.md", PUBLISHED / "README.md")
DATASETS = (*TITLES, "digits")
RESULTS = {name: pandas.read_csv(PUBLISHED / f"{name}.csv") for name in DATASETS}
CONTROLS = pandas.read_csv(PUBLISHED / "controls.csv")
SLOPE = (0.6, 0.7, 0.8, 0.9, 0.95, 0.97)  # where the curves fall
METHODS = {  # of the script, with their titles
    "weight": "weights",
    "scaled_weight": "weights, × input",
    "global_weight": "weights, ranked globally",
    "matched_weight": "matched weights",
    "neuron": "neurons",
    "random_weight": "random weights",
    "random_neuron": "random neurons",
    "scratch": "from scratch",
}
REPAIRED = CONTROLS[CONTROLS["method"].isin(METHODS)]  # networks of the script, other repairs
TODAY = {  # methods of today, each with a repair, and their titles
    "weight none": "magnitude",
    "scaled_weight none": "magnitude × input",
    "wanda none": "Wanda",
    "sparsegpt none": "SparseGPT",
    "sparsegpt refit_output": "SparseGPT, output layer refit",
    "sparsegpt refit": "SparseGPT, refit",
    "wanda refit": "Wanda, refit",
    "scaled_weight refit": "magnitude × input, refit",
    "weight refit": "magnitude, refit",
    "gradual_scaled refit": "gradual, magnitude × input",
    "weight distilled": "magnitude, distilled",
    "weight retrain": "magnitude, retrained",
}
COMPARED = {  # what is compared, and the two: method and repair
    "magnitude, refit, over SparseGPT": ("weight refit", "sparsegpt none"),
    "magnitude, refit, over SparseGPT at its best settings": (
        "weight refit",
        "sparsegpt_best none",
    ),
    "magnitude, refit, over SparseGPT, output layer refit": (
        "weight refit",
        "sparsegpt refit_output",
    ),
    "magnitude, refit, over SparseGPT, refit": ("weight refit", "sparsegpt refit"),
    "magnitude, refit to SparseGPT's aim, over SparseGPT": ("weight refit_own", "sparsegpt none"),
    "× input over magnitude, as pruned": ("scaled_weight none", "weight none"),
    "× input over magnitude, without the output bias": ("scaled_weight no_bias", "weight no_bias"),
    "× input over magnitude, output layer refit": (
        "scaled_weight refit_output",
        "weight refit_output",
    ),
    "× input over magnitude, refit": ("scaled_weight refit", "weight refit"),
    "× input over magnitude, retrained": ("scaled_weight retrain", "weight retrain"),
    "within units over within layers, magnitude, as pruned": ("weight_by_unit none", "weight none"),
    "within units over within layers, magnitude, refit": ("weight_by_unit refit", "weight refit"),
    "within units over within layers, × input, as pruned": (
        "scaled_by_unit none",
        "scaled_weight none",
    ),
    "within units over within layers, × input, refit": (
        "scaled_by_unit refit",
        "scaled_weight refit",
    ),
    "gradual over one step, × input, refit": ("gradual_scaled refit", "scaled_weight refit"),
    "gradual, × input, over magnitude, refit": ("gradual_scaled refit", "weight refit"),
    "gradual, × input, over magnitude, distilled": ("gradual_scaled refit", "weight distilled"),
}
REPAIRS = {  # and what had none, with their titles
    name: STYLES[name]["label"] for name in ("none", "no_bias", "refit_output", "refit", "retrain")
}
CONTROL_TITLES = {
    "refit": "refit",
    "refit_again": "refit nine times",
    "refit_own": "refit to SparseGPT's aim",
    "other_images": "refit, images of the other data set",
    "shuffled_output": "places shuffled, output layer refit",
    "shuffled": "places shuffled, refit",
    "random_values": "random values, output layer refit",
    "rescaled": "units rescaled",
    "distilled": "distilled",
    "refit_distilled": "refit, then distilled",
}
ORIGINAL = {  # test accuracy of one run of the original's own script, at 0 and SPARSITIES
    ("mnist", "weight"): "0.979 0.980 0.981 0.981 0.980 0.979 0.955 0.533 0.196 0.097",
    ("mnist", "neuron"): "0.979 0.980 0.977 0.974 0.967 0.923 0.270 0.097 0.097 0.097",
    ("fashion_mnist", "weight"): "0.886 0.886 0.887 0.887 0.882 0.867 0.737 0.421 0.256 0.106",
    ("fashion_mnist", "neuron"): "0.886 0.887 0.886 0.878 0.734 0.500 0.136 0.100 0.100 0.100",
}
# where current methods are compared
LEVELS = tuple(CONTROLS[CONTROLS["method"] == "sparsegpt"]["sparsity"].unique())
MARGIN = 1.0  # point of accuracy; two methods closer than that are equivalent


# ---------------------------------------------------------------------------------------- numbers


def values(name, method, sparsity=0.0, repair="none", column="test_accuracy"):
    """A column's value for each seed of a data set, method, sparsity and repair, by seed."""
    rows = RESULTS[name]
    chosen = rows[(rows["method"] == method) & (rows["sparsity"] == sparsity)]
    return chosen[chosen["repair"] == repair].set_index("seed")[column].sort_index()


def control(name, method, sparsity, repair, images=1000, epochs=0, column="test_accuracy"):
    """A column's value for each seed of a control, by seed."""
    what = (name, method, sparsity, repair, images, epochs)
    columns = ("dataset", "method", "sparsity", "control", "images", "epochs")
    rows = CONTROLS
    for key, value in zip(columns, what):
        rows = rows[rows[key] == value]
    return rows.set_index("seed")[column].sort_index()


def reached(name, state, sparsity, column="test_accuracy"):
    """A column's value for each seed, in the results or the controls, by seed.

    state: any method and repair, such as "sparsegpt refit".

    sparsegpt_best: at the settings that are best for the network, by the test set. distilled: for
    40 epochs.
    """
    method, repair = state.split()
    if method == "sparsegpt_best":
        tried = [m for m in CONTROLS["method"].unique() if m.startswith("sparsegpt")]
        series = [control(name, settings, sparsity, repair) for settings in tried]
        return pandas.concat(series).groupby("seed").max()
    if method in METHODS and repair in REPAIRS:
        return values(name, method, sparsity, repair, column)
    epochs = 40 if repair == "distilled" else 0
    return control(name, method, sparsity, repair, epochs=epochs, column=column)


def limits(better, worse, confidence=0.95):
    """Mean paired difference over seeds in points, and the ends of its interval (Student's t)."""
    differences = 100 * (better - worse)
    assert differences.notna().all() and len(differences) > 1
    mean = differences.mean()
    half = stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * stats.sem(differences)
    return mean, mean - half, mean + half


def gain(better, worse, confidence=0.95):
    """Mean paired difference with its interval, as text."""
    mean, low, high = (f"{limit:.1f}" for limit in limits(better, worse, confidence))
    return f"{mean} [{low}, {high}]".replace("-0.0", "0.0").replace("-", "−")


def accuracy(*key):
    """Mean accuracy, as text."""
    return f"{values(*key).mean():.3f}"


def cell(series):
    """Mean and standard deviation over seeds."""
    return f"{series.mean():.3f} ± {series.std():.3f}"


def speedup(name, method, sparsity):
    """Median speed-up over the seeds, as text.

    Taken from the retrained networks, as every method has these; a repair changes no sizes.
    """
    return f"{values(name, method, sparsity, 'retrain', 'speedup').median():.1f}"


def share(name, method, sparsity):
    """Mean share of the weights that are live, as text."""
    return f"{values(name, method, sparsity, column='live_fraction').mean():.3f}"


def verdict(first, second, names):
    """Say which of two is ahead by their paired differences, or whether they are equivalent.

    Equivalent: the 90 % interval lies within the margin, as in two one-sided tests at 5 %.
    """
    _, low, high = limits(first, second, 0.9)
    if low > -MARGIN and high < MARGIN:
        return "equivalent"
    _, low, high = limits(first, second)
    if low > 0 or high < 0:
        return names[0] if low > 0 else names[1]
    return "undecided"


# ----------------------------------------------------------------------------------------- tables


def markdown(heads, rows, texts=1):
    """A table; the first columns, of texts, are aligned to the left, the others to the right."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return "\n".join("|".join(["", *line, ""]) for line in (heads, rule, *rows))


def results(name):
    """The front page's table: accuracy of weight- and neuron-pruned networks."""
    levels = (0.8, 0.9, 0.95)
    rows = []
    for method in ("weight", "neuron"):
        for repair in ("none", "refit", "retrain"):
            cells = [cell(values(name, method, sparsity, repair)) for sparsity in levels]
            rows.append([f"{METHODS[method]}, {REPAIRS[repair]}", *cells])
    return markdown(["sparsity", *(f"{sparsity:g}" for sparsity in levels)], rows)


def repaired():
    """The front page's table of what is reached on MNIST with few weights; means alone."""
    rows = []
    for state in (
        "weight none",
        "sparsegpt none",
        "sparsegpt refit",
        "weight refit",
        "gradual_scaled refit",
        "weight distilled",
        "weight retrain",
    ):
        cells = [f"{reached('mnist', state, sparsity).mean():.3f}" for sparsity in LEVELS]
        rows.append([TODAY[state], *cells])
    return markdown(["sparsity", *(f"{sparsity:g}" for sparsity in LEVELS)], rows)


def today(name):
    """Accuracy of methods of today at high sparsity, and the weights that are live at 0.95."""
    rows = []
    for state, title in TODAY.items():
        series = [reached(name, state, sparsity) for sparsity in LEVELS]
        if all(map(len, series)):  # digits have no distilled networks
            live = reached(name, state, 0.95, "live_fraction").mean()
            rows.append([title, *map(cell, series), f"{live:.3f}"])
    heads = ["sparsity", *(f"{sparsity:g}" for sparsity in LEVELS), "live at 0.95"]
    return markdown(heads, rows)


def against(name):
    """Paired differences between methods of today."""
    rows = []
    for title, states in COMPARED.items():
        pairs = [[reached(name, state, sparsity) for state in states] for sparsity in LEVELS]
        if all(len(series) for pair in pairs for series in pair):
            rows.append([title, *(gain(*pair) for pair in pairs)])
    return markdown(["sparsity", *(f"{sparsity:g}" for sparsity in LEVELS)], rows)


def accuracies(name, repair):
    """Accuracy of every method at every level after a repair."""
    methods = list(METHODS) if repair == "retrain" else list(METHODS)[:-1]
    rows = [["0 (dense)", *[cell(values(name, "dense", 0, repair))] * len(methods)]]
    for sparsity in SPARSITIES:
        cells = [cell(values(name, method, sparsity, repair)) for method in methods]
        rows.append([f"{sparsity:g}", *cells])
    return markdown(["sparsity", *(METHODS[method] for method in methods)], rows)


def sizes(name):
    """Live share and speed-up of every method at every level."""
    methods = [method for method in METHODS if method != "scratch"]
    rows = []
    for sparsity in SPARSITIES:
        cells = [
            f"{share(name, method, sparsity)}, {speedup(name, method, sparsity)}×"
            for method in methods
        ]
        rows.append([f"{sparsity:g}", *cells])
    return markdown(["sparsity", *(METHODS[method] for method in methods)], rows)


def ladder(name):
    """What pruning costs, and what each repair gives back of it."""
    networks = {
        "weight": (0.9, 0.95, 0.97, 0.99),
        "neuron": (0.7, 0.8, 0.9, 0.95),
        "random_weight": (0.6, 0.7, 0.8, 0.9),
    }
    rows = []
    for method, sparsities in networks.items():
        for sparsity in sparsities:
            states = [values(name, method, sparsity, repair) for repair in REPAIRS]
            dense = values(name, "dense")
            steps = [gain(after, before) for before, after in zip(states, states[1:])]
            cells = [gain(dense, states[0]), *steps, gain(dense, states[-1])]
            rows.append([METHODS[method], f"{sparsity:g}", *cells])
    titles = list(REPAIRS.values())
    gains = [f"{after} over {before}" for before, after in zip(titles, titles[1:])]
    return markdown(["pruned", "sparsity", "lost as pruned", *gains, "lost retrained"], rows)


def matched(name):
    """Matched weights against neurons in each state."""
    states = [repair for repair in REPAIRS if repair != "refit_output"]
    rows = []
    for sparsity in SPARSITIES[:-2]:
        row = [f"{sparsity:g}"]
        row += [share(name, method, sparsity) for method in ("neuron", "matched_weight")]
        weight, neuron = (values(name, method, sparsity) for method in ("weight", "neuron"))
        row.append(gain(weight, neuron, 0.9))
        for repair in states:
            pair = [
                values(name, method, sparsity, repair) for method in ("matched_weight", "neuron")
            ]
            row.append(f"{gain(*pair, 0.9)} {verdict(*pair, ('weights', 'neurons'))}")
        rows.append(row)
    heads = ["sparsity", "live, neurons", "live, matched", "weights over neurons, as pruned"]
    return markdown([*heads, *(REPAIRS[repair] for repair in states)], rows)


def retrained(name):
    """Retrained networks against dense ones, and against new ones of the same sizes."""
    rows = []
    for sparsity in SPARSITIES:
        after = {m: values(name, m, sparsity, "retrain") for m in ("weight", "neuron", "scratch")}
        cells = [
            gain(after[method], values(name, "dense", 0, repair))
            for method in ("weight", "neuron")
            for repair in ("none", "retrain")
        ]
        rows.append([f"{sparsity:g}", *cells, gain(after["neuron"], after["scratch"])])
    heads = [
        f"{what} over dense{more}"
        for what in ("weights", "neurons")
        for more in ("", ", retrained too")
    ]
    return markdown(["sparsity", *heads, "neurons over scratch"], rows)


def within_a_point(name, method, repair):
    """The highest sparsity whose loss against dense is below one point, by the 95 % interval.

    None if there is none.
    """
    dense = values(name, "dense")
    networks = {level: values(name, method, level, repair) for level in SPARSITIES}
    losses = {level: limits(dense, these) for level, these in networks.items() if len(these)}
    return max((level for level, (*_, high) in losses.items() if high < MARGIN), default=None)


def speed():
    """The sparsity and speed of each method that a repair keeps within one point of dense."""
    rows = []
    for name, title in TITLES.items():
        for repair in REPAIRS:
            row = [title, REPAIRS[repair]]
            for method in METHODS:
                level = within_a_point(name, method, repair)
                row.append(f"{level:g}, {speedup(name, method, level)}×" if level else "none")
            rows.append(row)
    return markdown(["data set", "repair", *METHODS.values()], rows, 2)


def distinct(rows, *columns):
    """Distinct values of columns together, in the order of the rows."""
    return rows[list(columns)].drop_duplicates().itertuples(index=False)


def controls(name):
    """Accuracy after each control."""
    rows = []
    for repair, images, epochs in distinct(REPAIRED, "control", "images", "epochs"):
        cells = [
            cell(control(name, *network, repair, images, epochs))
            for network in distinct(REPAIRED, "method", "sparsity")
        ]
        rows.append([CONTROL_TITLES[repair], f"{images:,}", str(epochs), *cells])
    networks = distinct(REPAIRED, "method", "sparsity")
    heads = [f"{METHODS[method]} {sparsity:g}" for method, sparsity in networks]
    return markdown(["repair", "images", "epochs", *heads], rows)


def distillation(name):
    """Refit against distillation on the same images."""
    rows = []
    for method, sparsity in distinct(REPAIRED, "method", "sparsity"):
        refit = control(name, method, sparsity, "refit")
        short, long = (
            control(name, method, sparsity, "distilled", epochs=epochs) for epochs in (10, 40)
        )
        both = control(name, method, sparsity, "refit_distilled", epochs=10)
        again = values(name, method, sparsity, "retrain")
        cells = [gain(refit, short), gain(refit, long), gain(both, long), gain(again, refit)]
        rows.append([f"{METHODS[method]} {sparsity:g}", *cells])
    heads = ["refit over 10 epochs of distillation", "refit over 40 epochs"]
    heads += ["refit and 10 epochs over 40 epochs", "retrained over refit"]
    return markdown(["pruned", *heads], rows)


def once(name, method, sparsity):
    """Accuracy of the original's run, as text."""
    return ORIGINAL[name, method].split()[1 + SPARSITIES.index(sparsity)]


def original():
    """The original's run beside the means here, where the curves fall."""
    heads = ["sparsity"]
    for title in TITLES.values():
        for what in ("weights", "neurons"):
            heads += [f"{title} {what}, original", "here"]
    rows = []
    for sparsity in SLOPE:
        rows.append([f"{sparsity:g}"])
        for name, method in ORIGINAL:
            rows[-1] += [once(name, method, sparsity), cell(values(name, method, sparsity))]
    return markdown(heads, rows)


TABLES = {"repaired": repaired, "speed": speed, "original": original}
for dataset in DATASETS:
    for table in (today, against):
        TABLES[f"{table.__name__} {dataset}"] = functools.partial(table, dataset)
for dataset in TITLES:
    for table in (results, sizes, ladder, matched, retrained, controls, distillation):
        TABLES[f"{table.__name__} {dataset}"] = functools.partial(table, dataset)
    for state in REPAIRS:
        TABLES[f"{state} {dataset}"] = functools.partial(accuracies, dataset, state)


def render(text):
    """Return a text with its tables made anew."""

    def fill(match):
        return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def main():
    """Render the tables of both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the files")
    write = parser.parse_args().write
    for path in FILES:
        text = path.read_text()
        if render(text) != text:
            print(f"{path} {'written' if write else 'is not up to date; pass --write'}")
            if write:
                path.write_text(render(text))


if __name__ == "__main__":
    main()

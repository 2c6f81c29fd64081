"""The tables of this folder's README.md and of the front page, made from the CSV files here.

    python plots/published/tables.py --write

replaces what stands between each `<!-- table: name -->` and the next `<!-- end -->`. Without
--write it only says which files that would change. The test of the prose uses the same helpers.
"""

import argparse
import functools
import re
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

PUBLISHED = Path(__file__).parent
ROOT = PUBLISHED.parents[1]
sys.path.insert(0, str(ROOT))
from controls import DATASETS, LEVELS, REFIT, SPARSITIES

from network_pruning import STYLES, TITLES

FILES = (ROOT / "README.md", PUBLISHED / "README.md")
RESULTS = pd.concat(pd.read_csv(PUBLISHED / f"{name}.csv") for name in DATASETS)
CONTROLS = pd.read_csv(PUBLISHED / "controls.csv", dtype={"images": str})
NETWORKS = ["dataset", "method", "sparsity", "repair", "images"]  # what all seeds have in common
ROWS = pd.concat([RESULTS.assign(images="1000"), CONTROLS])
SEEDS = {network: rows.set_index("seed").sort_index() for network, rows in ROWS.groupby(NETWORKS)}
METHODS = {  # of the data sets' CSV files, with their titles
    "weight": "weights",
    "scaled_weight": "× input",
    "gradual_scaled": "gradual",
    "global_weight": "ranked globally",
    "matched_weight": "matched",
    "neuron": "neurons",
    "random_weight": "random weights",
    "random_neuron": "random neurons",
    "scratch": "from scratch",
}
REPAIRS = {  # with their titles
    name: STYLES[name]["label"] for name in ("none", "no_bias", "refit_output", "refit", "retrain")
}
SLOPE = (0.6, 0.7, 0.8, 0.9, 0.95, 0.97)  # where the curves of the original fall
ORIGINAL = {  # test accuracy of one run of the original's own script, at 0 and SPARSITIES
    ("mnist", "weight"): "0.979 0.980 0.981 0.981 0.980 0.979 0.955 0.533 0.196 0.097",
    ("mnist", "neuron"): "0.979 0.980 0.977 0.974 0.967 0.923 0.270 0.097 0.097 0.097",
    ("fashion_mnist", "weight"): "0.886 0.886 0.887 0.887 0.882 0.867 0.737 0.421 0.256 0.106",
    ("fashion_mnist", "neuron"): "0.886 0.887 0.886 0.878 0.734 0.500 0.136 0.100 0.100 0.100",
}
AT_LEVELS = ["sparsity", *(f"{level:g}" for level in LEVELS)]  # heads of columns
MARGIN = 1.0  # point of accuracy; two methods closer than that are equivalent


# ---------------------------------------------------------------------------------------- numbers


def values(name, state, sparsity=0.0, column="test_accuracy", images="1000"):
    """A column's value for each seed of a data set; state: method and repair, "weight refit"."""
    return SEEDS[name, state.split()[0], sparsity, state.split()[1], images][column]


def interval(series, confidence=0.95):
    """Mean over seeds, and the ends of its interval (Student's t)."""
    assert series.notna().all() and len(series) > 1
    half = stats.t.ppf((1 + confidence) / 2, len(series) - 1) * stats.sem(series)
    return series.mean(), series.mean() - half, series.mean() + half


def limits(better, worse, confidence=0.95):
    """Mean paired difference over seeds in points, and the ends of its interval."""
    return interval(100 * (better - worse), confidence)


def as_text(mean, low, high):
    """A mean with its interval."""
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]".replace("-0.0", "0.0").replace("-", "−")


def gain(better, worse, confidence=0.95):
    """Mean paired difference with its interval, as text."""
    return as_text(*limits(better, worse, confidence))


def gap_closed(name, state, sparsity):
    """Percentage of what one epoch of retraining gains over magnitude as pruned, as text."""
    gained, pruned, retrained = (
        values(name, each, sparsity) for each in (state, "weight none", "weight retrain")
    )
    return as_text(*interval(100 * (gained - pruned) / (retrained - pruned)))


def mean(*key, **options):
    """Mean accuracy, as text."""
    return f"{values(*key, **options).mean():.3f}"


def mean_after(repair, name, method, sparsity):
    """Mean accuracy of a method after a repair, as text; empty where there is none."""
    measured = (name, method, sparsity, repair, "1000") in SEEDS
    return mean(name, f"{method} {repair}", sparsity) if measured else ""


def cell(series):
    """Mean and standard deviation over seeds."""
    return f"{series.mean():.3f} ± {series.std():.3f}"


def live(name, method, sparsity):
    """Mean share of the hidden weights that are live, as text."""
    repair = "retrain" if method == "scratch" else "none"
    return f"{values(name, f'{method} {repair}', sparsity, 'live_fraction').mean():.3f}"


def speedup(name, method, sparsity):
    """Median speed-up over the seeds, as text; a repair changes no sizes."""
    return f"{values(name, f'{method} retrain', sparsity, 'speedup').median():.1f}×"


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


def within_a_point(name, method, repair):
    """The highest sparsity whose loss against dense is below one point, and the speed-up there.

    By the 95 % interval. "none" if no level is; empty if the method has no such repair.
    """
    measured = [level for level in SPARSITIES if (name, method, level, repair, "1000") in SEEDS]
    within = []
    for level in measured:
        _, _, high = limits(values(name, "dense none"), values(name, f"{method} {repair}", level))
        if high < MARGIN:
            within.append(level)
    if not within:
        return "none" if measured else ""
    return f"{max(within):g}: {speedup(name, method, max(within))}"


# ----------------------------------------------------------------------------------------- tables


def markdown(heads, rows, texts=1):
    """A table; the first columns, of texts, are aligned to the left, the others to the right."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return "\n".join("|".join(["", *line, ""]) for line in (heads, rule, *rows))


def front():
    """The front page's table: what is reached with few weights."""
    states = {
        "weight none": "magnitude, as pruned",
        "weight refit": "magnitude, refit",
        "gradual_scaled refit": "gradual, refit",
        "weight retrain": "magnitude, retrained",
        "sparsegpt none": "SparseGPT, as pruned",
        "sparsegpt refit": "SparseGPT, refit",
    }
    rows = [[title, *(mean("mnist", state, s) for s in LEVELS)] for state, title in states.items()]
    return markdown(AT_LEVELS, rows)


def reached(name):
    """What each method and repair reaches with few weights, and the weights live at 0.95."""
    repaired = {
        "none": "as pruned",
        "refit": "refit",
        "distilled": "distilled",
        "retrain": "retrained",
    }
    methods = {
        "weight": "magnitude",
        "scaled_weight": "magnitude × input",
        "gradual_scaled": "gradual × input",
        "sparsegpt": "SparseGPT",
    }
    rows = []
    for repair, state in repaired.items():
        for method, title in methods.items():
            cells = [cell(values(name, f"{method} {repair}", level)) for level in LEVELS]
            rows.append([f"{title}, {state}", *cells, live(name, method, 0.95)])
    return markdown([*AT_LEVELS, "live at 0.95"], rows)


def repairs():
    """What pruning costs, and what each repair gives back of it."""
    networks = {"weight": (0.9, 0.95, 0.99), "neuron": (0.8, 0.9), "random_weight": (0.8,)}
    rows = []
    for name, title in TITLES.items():
        dense = values(name, "dense none")
        for method, sparsities in networks.items():
            for sparsity in sparsities:
                states = [values(name, f"{method} {repair}", sparsity) for repair in REPAIRS]
                steps = [gain(after, before) for before, after in zip(states, states[1:])]
                cells = [gain(dense, states[0]), *steps, gain(dense, states[-1])]
                rows.append([title, f"{METHODS[method]} {sparsity:g}", *cells])
    heads = ["data set", "pruned", "lost", "no output bias", "+ output layer refit", "+ all refit"]
    return markdown([*heads, "retrained over refit", "still lost"], rows, 2)


def matched():
    """Matched weights against neurons in each state."""
    rows = []
    for name, title in TITLES.items():
        for sparsity in SPARSITIES[2:-2]:
            row = [title, f"{sparsity:g}"]
            row += [live(name, method, sparsity) for method in ("neuron", "matched_weight")]
            for repair in ("none", "no_bias", "refit", "retrain"):
                methods = ("matched_weight", "neuron")
                pair = [values(name, f"{method} {repair}", sparsity) for method in methods]
                row.append(f"{gain(*pair, 0.9)} {verdict(*pair, ('weights', 'neurons'))}")
            rows.append(row)
    heads = ["data set", "sparsity", "live, neurons", "live, matched", "as pruned"]
    return markdown([*heads, "without the output bias", "refit", "retrained"], rows, 2)


def speed():
    """The sparsity and speed of each method that a repair keeps within one point of dense."""
    methods = ("weight", "scaled_weight", "gradual_scaled", "neuron", "random_neuron", "scratch")
    rows = []
    for name, title in TITLES.items():
        for repair in ("none", "refit", "retrain"):
            cells = [within_a_point(name, method, repair) for method in methods]
            rows.append([title, REPAIRS[repair], *cells])
    return markdown(["data set", "repair", *(METHODS[method] for method in methods)], rows, 2)


def controls():
    """What refitting needs: accuracy with other images, values, places and repairs."""
    networks = [(method, sparsity) for method, levels in REFIT.items() for sparsity in levels]
    repaired = {  # titles: repair, images
        "as pruned": ("none", "1000"),
        "output layer refit": ("refit_output", "1000"),
        "output layer refit, random values": ("random_values", "1000"),
        "output layer refit, shuffled": ("shuffled_output", "1000"),
        "refit": ("refit", "1000"),
        "refit, shuffled": ("shuffled", "1000"),
        "refit, 100 images": ("refit", "100"),
        "refit, 300 images": ("refit", "300"),
        "refit, 5,000 images": ("refit", "5000"),
        "refit, foreign images": ("refit", "foreign"),
    }
    rows = []
    for name, title in TITLES.items():
        for method, sparsity in networks:
            cells = [
                mean(name, f"{method} {repair}", sparsity, images=images)
                for repair, images in repaired.values()
            ]
            rows.append([title, f"{METHODS[method]} {sparsity:g}", *cells])
    return markdown(["data set", "pruned", *repaired], rows, 2)


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
            pruned = values(name, f"{method} none", sparsity)
            rows[-1] += [once(name, method, sparsity), cell(pruned)]
    return markdown(heads, rows)


def everything(name):
    """Mean accuracy of every method at every level after every repair; live share and speed-up."""
    shown = {title: functools.partial(mean_after, repair) for repair, title in REPAIRS.items()}
    shown |= {"live share": live, "speed-up": speedup}
    rows = [
        [title, f"{sparsity:g}", *(show(name, method, sparsity) for method in METHODS)]
        for title, show in shown.items()
        for sparsity in SPARSITIES
    ]
    return markdown(["", "sparsity", *METHODS.values()], rows, 2)


TABLES = {table.__name__: table for table in (front, repairs, matched, speed, controls, original)}
for dataset in DATASETS:
    for table in (reached, everything):
        TABLES[f"{table.__name__} {dataset}"] = functools.partial(table, dataset)


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

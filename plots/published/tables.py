"""The tables of this folder's README.md and of the front page, made from the CSV files here.

    python plots/published/tables.py --write

replaces what stands between each `<!-- table: name -->` and the next `<!-- end -->`. Without
--write it only says which files that would change. The test of the prose uses the same helpers.
"""

import argparse
import functools
import itertools
import re
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

PUBLISHED = Path(__file__).parent
ROOT = PUBLISHED.parents[1]
sys.path.insert(0, str(ROOT))
from controls import BATCHES, DATASETS, LEVELS, RECIPE

from network_pruning import STYLES, TITLES

FILES = (ROOT / "README.md", PUBLISHED / "README.md")
FEW_LEVELS = (0.95, 0.99)  # where there is no room for all
LENET = "lenet-300-100"  # the folder, and with a data set's name the name of its networks
REPLICATION = "replication"  # likewise
MARGIN = 1.0  # points of accuracy; two methods closer than that are equivalent
REPAIRS = {name: STYLES[name]["label"] for name in ("none", "refit", "retrain")}
METHODS = {  # that are compared, with their names in the text
    "weight": "magnitude",
    "saliency_weight": "saliency",
    "gradual_weight": "gradual",
}
STATES = {  # their methods and repairs, with their titles
    f"{method} {repair}": f"{title}, {state}"
    for (repair, state), (method, title) in itertools.product(REPAIRS.items(), METHODS.items())
}
STATES["gradual_weight none"] = "gradual, before its last refit"


def load():
    """Return the rows of all CSV files but the one of times, with the network in `dataset`."""
    tables = []
    for folder in ("", LENET, REPLICATION):
        for path in (PUBLISHED / folder).glob("*.csv"):
            if path.name != "speed.csv":
                rows = pd.read_csv(path)
                images = rows["images"] if "images" in rows else rows["refit_images"]
                names = (f"{folder} " + rows["dataset"]).str.strip()
                tables.append(rows.assign(dataset=names, images=images))
    return pd.concat(tables)


RESULTS = load()
NETWORKS = ["dataset", "method", "sparsity", "repair", "images"]  # what all seeds have in common
SEEDS = {key: rows.set_index("seed").sort_index() for key, rows in RESULTS.groupby(NETWORKS)}
TIMED_BY = ["dataset", "method", "repair", "sparsity", "batch"]
TIMES = pd.read_csv(PUBLISHED / "speed.csv").set_index(TIMED_BY).sort_index()


# ---------------------------------------------------------------------------------------- numbers


def values(name, state, sparsity=0.0, column="test_accuracy", images=RECIPE.refit_images):
    """A column's value for each seed of a data set; state: method and repair, "weight refit"."""
    method, repair = state.split()
    return SEEDS[name, method, sparsity, repair, images][column]


def interval(series, confidence=0.95):
    """Mean over seeds, and the ends of its interval (Student's t)."""
    assert series.notna().all() and len(series) > 1
    half = stats.t.ppf((1 + confidence) / 2, len(series) - 1) * stats.sem(series)
    return series.mean(), series.mean() - half, series.mean() + half


def limits(better, worse, confidence=0.95):
    """Mean paired difference in points over the seeds of both, and the ends of its interval."""
    better, worse = better.align(worse, join="inner")  # controls have fewer seeds
    return interval(100 * (better - worse), confidence)


def gain(better, worse, confidence=0.95):
    """Mean paired difference with its interval, as text."""
    mean, low, high = limits(better, worse, confidence)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]".replace("-", "−")


def mean(*key, **options):
    """Mean accuracy, as text."""
    return f"{values(*key, **options).mean():.3f}"


def cell(*key):
    """Mean accuracy and standard deviation over seeds, as text."""
    return f"{values(*key).mean():.3f} ± {values(*key).std():.3f}"


def live(name, method, sparsity):
    """Mean share of the hidden weights that are live, as text."""
    return f"{values(name, f'{method} none', sparsity, 'live_fraction').mean():.4f}"


def verdict(first, second, names):
    """Say which of two is ahead by their paired differences, or whether they are equivalent.

    Equivalent: the 90% interval lies within the margin, as in two one-sided tests at 5%.
    """
    _, low, high = limits(first, second, 0.9)
    if low > -MARGIN and high < MARGIN:
        return "equivalent"
    _, low, high = limits(first, second)
    if low > 0 or high < 0:
        return names[0] if low > 0 else names[1]
    return "undecided"


def timed(name, state, sparsity, column="speedup", batch=10000):
    """The speed-up of a network over the dense one, or the seconds it took to make it."""
    return TIMES.loc[(name, *state.split(), sparsity, batch), column]


def speeds(name, state, sparsity):
    """The speed-ups of a network over the dense one, as text: one for each size of batches."""
    return [f"{timed(name, state, sparsity, batch=batch):.2g}×" for batch in BATCHES]


def fastest(name, state, margin):
    """The highest sparsity whose whole interval of the loss is below a margin; the speeds there."""
    levels = TIMES.loc[(name, *state.split())].index.unique("sparsity")
    lost = {s: limits(values(name, "dense none"), values(name, state, s))[2] for s in levels}
    within = [level for level in levels if lost[level] < margin]
    return f"{within[-1]:g}: {', '.join(speeds(name, state, within[-1]))}"


# ----------------------------------------------------------------------------------------- tables


def markdown(heads, rows, texts=1):
    """A table; the first columns, of texts, are aligned to the left, the others to the right."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return "\n".join("|".join(["", *line, ""]) for line in (heads, rule, *rows))


def heads_at(title, levels):
    """Heads of a column for each level, with a title at the first."""
    return [f"{title} {levels[0]}", *map(str, levels[1:])]


def compared(states, names, levels):
    """Mean accuracies of states, with titles, of data sets, with titles, at sparsities."""
    cells = list(itertools.product(names, levels))
    rows = [
        [title, *(mean(name, state, s) for name, s in cells)] for state, title in states.items()
    ]
    heads = [head for title in names.values() for head in heads_at(title, levels)]
    return markdown(["", *heads], rows)


def front():
    """The front page's table: what is reached with few weights, or with few neurons."""
    fast = timed("mnist", "saliency_neuron refit", 0.9)
    neurons = f"neurons by saliency, refit (0.9: {fast:.0f}× as fast)"
    return compared({**STATES, "saliency_neuron refit": neurons}, TITLES, LEVELS)


def advice():
    """What to do for each goal: the command, and what it gives."""
    goals = {  # goals: state, sparsity
        "fewest weights, without labels": ("gradual_weight refit", 0.99),
        "fewest weights, with labels": ("gradual_weight retrain", 0.99),
        "small dense layers, without labels": ("saliency_neuron refit", 0.8),
        "small dense layers, with labels": ("scratch retrain", 0.9),
        "neither images nor labels": ("weight none", 0.6),
    }
    rows = []
    for goal, (state, sparsity) in goals.items():
        method, repair = state.split()
        options, printed = f"--methods {method}", f"{repair}, {sparsity:g}"
        if repair == "retrain":
            options += " --retrain-epochs 1"
        if method == "scratch":
            options, printed = "--hidden-units 100 100 50 20 --epochs 11", "dense"
        row = [goal, f"`{options}`", printed, *(mean(name, state, sparsity) for name in TITLES)]
        row += speeds("mnist", state, sparsity)
        rows.append([*row, f"{timed('mnist', state, sparsity, 'seconds'):.1f}"])
    heads = ["goal", "options", "printed as", *TITLES.values(), "speed, 250", "10,000"]
    return markdown([*heads, "seconds"], rows, 3)


def reached(name):
    """What methods and repairs reach with few weights; those of LeNet-300-100 beside it."""
    levels = LEVELS if name in TITLES else FEW_LEVELS
    rows = []
    for state, title in STATES.items():
        method, repair = state.split()
        row = [title, *(cell(name, state, sparsity) for sparsity in levels)]
        row += [live(name, method, s) if repair == "none" else "" for s in FEW_LEVELS]
        if name in TITLES:
            row += [mean(f"{LENET} {name}", state, sparsity) for sparsity in FEW_LEVELS]
        rows.append(row)
    heads = ["", *map(str, levels), *heads_at("live at", FEW_LEVELS)]
    heads += heads_at("LeNet,", FEW_LEVELS) if name in TITLES else []
    return markdown(heads, rows)


def ablation():
    """What the score, the rounds and global ranking are worth."""
    scores = {"magnitude": "magnitude", "scaled": "magnitude × input", "saliencies": "saliency"}
    schedules = {"one_shot": "one-shot", "rounds": "in rounds"}
    wheres = {"layer": "layerwise", "together": "global"}
    parts = itertools.product(scores.items(), schedules.items(), wheres.items())
    states = {}
    for combination in parts:
        (score, schedule, where), titles = zip(*combination)
        states[f"{schedule}_{score}_{where} refit"] = ", ".join(titles)
    return compared(states, TITLES, LEVELS)


def others():
    """What else there is without labels, and what true labels of as many images add."""
    states = {
        "rounds_saliencies_together refit": "gradual, refit",
        "gradual_weight distilled": "gradual, distilled",
        "gradual_weight labeled": "gradual, true labels",
        "rounds_obs_response_together refit": "gradual, by OBS × response, refit",
        "rounds_obs_layer refit": "gradual, by OBS, layerwise, refit",
        "one_shot_magnitude_layer refit": "magnitude, refit",
        "weight distilled": "magnitude, distilled",
        "weight labeled": "magnitude, true labels",
        "sparsegpt none": "SparseGPT",
        "sparsegpt_one_block none": "SparseGPT, one block",
        "sparsegpt refit": "SparseGPT, refit",
        "sparsegpt_one_block refit": "SparseGPT, one block, refit",
        "wanda refit": "Wanda, refit",
    }
    names = {**TITLES, "digits": "digits", f"{LENET} mnist": "LeNet, MNIST"}
    return compared(states, names, FEW_LEVELS)


def repairs():
    """What pruning costs, and what each repair gives back of it."""
    networks = {"weight": (0.9, 0.95, 0.99), "neuron": (0.8, 0.9), "random_weight": (0.8,)}
    steps = ["none", "no_bias", "refit_output", "refit", "retrain"]
    rows = []
    for name, title in TITLES.items():
        for method, sparsities in networks.items():
            for sparsity in sparsities:
                errors = [
                    1 - values(name, f"{method} {repair}", sparsity).mean() for repair in steps
                ]
                cells = [f"{100 * error:.1f}" for error in errors]
                rows.append([title, f"{STYLES[method]['label']}, {sparsity:g}", *cells])
    return markdown(["data set", "pruned", *(STYLES[step]["label"] for step in steps)], rows, 2)


def matched():
    """Matched weights minus neurons, refit and retrained."""
    rows = []
    for name, sparsity in itertools.product(TITLES, (0.6, 0.7, 0.8, 0.9)):
        row = [TITLES[name], f"{sparsity:g}"]
        row += [live(name, method, sparsity) for method in ("matched_weight", "neuron")]
        for repair in ("refit", "retrain"):
            pair = [values(name, f"{m} {repair}", sparsity) for m in ("matched_weight", "neuron")]
            row.append(f"{gain(*pair, 0.9)} {verdict(*pair, ('weights', 'neurons'))}")
        rows.append(row)
    heads = ["data set", "sparsity", "live, weights", "live, neurons", "refit", "retrained"]
    return markdown(heads, rows, 2)


def speed():
    """The fastest network of each way within one and within three points of dense."""
    ways = {
        "neuron refit": "neurons by L2 norm, refit",
        "saliency_neuron refit": "neurons by saliency, refit",
        "gradual_weight refit": "gradual, refit, as sparse matrices",
        "neuron retrain": "neurons by L2 norm, retrained",
        "saliency_neuron retrain": "neurons by saliency, retrained",
        "gradual_weight retrain": "gradual, retrained, as sparse matrices",
        "scratch retrain": "small networks from scratch",
    }
    margins = (MARGIN, 3.0)
    rows = [
        [title, *(fastest(name, way, margin) for name in TITLES for margin in margins)]
        for way, title in ways.items()
    ]
    heads = [f"{title}, within {margin:.0f}" for title in TITLES.values() for margin in margins]
    return markdown(["", *heads], rows)


TABLES = {
    table.__name__: table for table in (front, advice, ablation, others, repairs, matched, speed)
}
for dataset in DATASETS:
    TABLES[f"reached {dataset}"] = functools.partial(reached, dataset)


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

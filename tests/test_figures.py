"""What the table and the figures show, from the rows alone."""

import itertools
from pathlib import Path
from unittest import mock

import numpy as np
import pandas
import pytest

from network_pruning import FIGURES, REPAIRS, report, save_results, style_of

METHODS = ("weight", "scratch", "neuron", "matched_weight", "own")  # one without a style
LEVELS = (0.5, 0.9, 0.99)
STATES = (*REPAIRS, "retrain")
RECIPE = {"hidden_units": "50", "epochs": 10, "batch_size": 128, "learning_rate": 0.001}
RECIPE |= {"refit_images": 1000, "retrain_epochs": 2, "device": "CPU", "versions": "numpy 2"}


def make_rows(methods=METHODS, levels=LEVELS, states=STATES):
    """Rows as the script writes them: 0.1 better with each seed, twice as fast at each level."""
    networks = [("dense", 0.0), *itertools.product(methods, levels)]
    keys = [(*network, *key) for key in itertools.product(states, range(3)) for network in networks]
    rows = pandas.DataFrame(keys, columns=["method", "sparsity", "repair", "seed"])
    gained = 0.1 * rows["seed"] + 0.02 * rows["repair"].map(STATES.index)
    lost = 0.2 * rows["sparsity"] + 0.01 * rows["method"].map(("dense", *METHODS).index)
    return rows.assign(
        test_accuracy=0.3 + gained - lost,
        live_fraction=((1 - rows["sparsity"]) ** 2).round(6),
        layer_sizes="64-50-5",
        speedup=2.0 ** rows["sparsity"].map((0, *levels).index),
        **RECIPE,
    )


ROWS = make_rows()


def means(method, repair):
    shown = ROWS[ROWS["method"].isin(["dense", method]) & (ROWS["repair"] == repair)]
    return shown.groupby("sparsity")["test_accuracy"].mean()


def drawn(rows, name="mnist"):
    """The figures of some rows, by the end of their files' names."""
    with mock.patch("network_pruning.save") as save:
        save_results(name, rows, Path())
    _, *pictures = save.call_args_list  # the first is the table
    return {kind: call.args[1].__self__ for kind, call in zip(FIGURES, pictures)}


def curve(ax, name):
    """Places on the x axis and accuracies of a method or repair, as drawn."""
    [line] = [line for line in ax.lines if line.get_label() == style_of(name)["label"]]
    return np.array([line.get_xdata(), 1 - line.get_ydata()])


def test_the_table_shows_means_as_pruned_refit_and_retrained_and_the_files(capsys):
    report("mnist", ROWS, Path("plots"))
    title, heads, _, *rows, _, saved = capsys.readouterr().out.strip().splitlines()
    assert title == "mnist: mean test accuracy"
    assert heads.split() == ["sparsity", "0.00", "0.50", "0.90", "0.99"]
    assert [row[:23].split()[-1] for row in rows] == 6 * ["none", "refit", "retrain"]
    assert rows[3].split() == ["weight", "none", *(f"{m:.3f}" for m in means("weight", "none")[1:])]
    assert saved == "saved in plots/mnist.csv, drawn in plots/mnist-*.png"


def test_the_first_figure_shows_means_band_and_seeds_of_each_method_as_pruned_and_refit():
    panels = drawn(ROWS)["accuracy"].axes
    for ax, repair in zip(panels, ("none", "refit"), strict=True):
        assert ax.get_title() == style_of(repair)["label"]
        for method in METHODS:
            expected = means(method, repair)
            np.testing.assert_allclose(curve(ax, method), [1 - expected.index, expected])
        # as pruned, in both
        assert {"dense network: 0.400", "chance: 0.200"} <= {line.get_label() for line in ax.lines}
        assert sum(line.get_linewidth() == 0.5 for line in ax.lines) == 3 * len(METHODS)
    band = 1 - panels[0].collections[0].get_paths()[0].vertices[:, 1]  # one standard deviation
    assert [band.max(), band.min()] == pytest.approx([0.5, means("weight", "none").min() - 0.1])
    ticks = [tick.get_text() for tick in panels[1].get_xticklabels()]
    assert ticks[:7] == ["0", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99"]


def test_accuracies_have_a_log_scale_of_the_error_and_one_range_in_all_panels():
    rows = ROWS.assign(test_accuracy=1.7 * ROWS["test_accuracy"])  # up to 0.986
    for figure in drawn(rows).values():
        axes = [ax for ax in figure.axes if ax.get_title() != "speed"]
        [(bottom, top)] = {ax.get_ylim() for ax in axes}
        assert bottom > 0.8 > 0.05 > top
        assert "0.9" in [tick.get_text() for tick in axes[0].get_yticklabels()]
        errors = [[0.5, 1 - accuracy] for accuracy in (0.6, 0.8, 0.98, 0.99)]
        y = axes[0].transData.transform(errors)[:, 1]
        assert y[0] < y[1] and y[1] - y[0] == pytest.approx(y[3] - y[2])


def test_every_method_is_drawn_after_each_repair_on_the_same_axes():
    *panels, speed = drawn(ROWS)["methods"].axes
    titles = [style_of(repair)["label"] for repair in STATES]
    assert [ax.get_title() for ax in (*panels, speed)] == [*titles, "speed"]
    for ax, repair in zip(panels, STATES):
        assert ax.get_xlim() == panels[0].get_xlim()
        for method in METHODS:
            np.testing.assert_allclose(curve(ax, method)[1], means(method, repair))
    np.testing.assert_allclose(1 - curve(speed, "neuron")[1], [1, 2, 4, 8])


def test_repairs_are_drawn_by_live_weights_every_network_within_the_axes():
    rows = ROWS.copy()
    rows.loc[(rows["sparsity"] == 0.99) & (rows["method"] == "neuron"), "live_fraction"] = 0.00005
    for ax, method in zip(drawn(rows)["repairs"].axes, ("weight", "neuron"), strict=True):
        assert ax.get_title() == style_of(method)["label"]
        assert min(ax.get_xlim()) < 0.00005
        for repair in STATES:
            expected = means(method, repair)
            np.testing.assert_allclose(curve(ax, repair)[0, :3], (1 - expected.index[:3]) ** 2)
            np.testing.assert_allclose(curve(ax, repair)[1], expected)


@pytest.mark.parametrize(
    ("methods", "levels"),
    [(["own"], (0.5, 0.9999, 1)), (METHODS, (0.25, 0.3)), (METHODS, (1,)), (["weight"], (0.25,))],
)
def test_whatever_was_run_is_drawn_but_networks_of_which_nothing_is_left(methods, levels):
    rows = make_rows(methods, levels, tuple(REPAIRS))
    for figure in drawn(rows[rows["seed"] == 0]).values():
        figure.draw_without_rendering()
        for ax in figure.axes:
            marked = [line for line in ax.lines if line.get_marker() != "None"]
            assert len(marked) >= min(len(methods), len(REPAIRS))
            assert all(np.nanmin(line.get_xdata()) > 0 for line in marked)


def test_the_caption_says_what_was_run_and_title_and_texts_stay_within_the_figure():
    rows = ROWS.assign(hidden_units="-".join(40 * ["1000"]))  # a long caption
    rows.loc[rows["seed"] == 1, "device"] = "GPU, H200"
    for figure, (title, _) in zip(drawn(rows, "fashion_mnist").values(), FIGURES.values()):
        assert figure.legends[0].get_title().get_text() == f"Fashion-MNIST: {title}"
        caption = " ".join(figure.get_supxlabel().split())
        assert "; hidden units: 1000-1000" in caption
        assert "; epochs: 10; batch size: 128; learning rate: 0.001; refit images: 1000" in caption
        assert "; seed: 0 and 1 and 2; device: CPU and GPU, H200; versions: numpy 2" in caption
        figure.draw_without_rendering()
        width, height = figure.canvas.get_width_height()
        for text in (*figure.texts, *(ax.title for ax in figure.axes), *figure.legends):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text

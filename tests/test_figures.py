"""What the table and the figures show, from the CSV alone."""

import random

import numpy as np
import pandas
import pytest

import network_pruning
from network_pruning import (
    COLUMNS,
    REPAIRS,
    STYLES,
    accuracy_table,
    draw_analysis,
    draw_figures,
    draw_ladder,
    draw_main,
)

METHODS = ("weight", "neuron", "matched_weight", "random_weight")
LEVELS = (0.5, 0.9, 0.99)
ONE_SHOT = ("none", "no_bias", "refit_output", "refit")


def accuracy(method, sparsity, seed, repair="none"):
    """An accuracy of its own for each row, 0.1 more with each seed."""
    if method == "dense":
        return 0.3 + 0.1 * seed + 0.005 * (repair == "retrain")
    lost = 0.2 * sparsity + 0.01 * METHODS.index(method)
    return 0.3 + 0.1 * seed - lost + 0.02 * list(REPAIRS).index(repair)


def make_rows(seeds=3, repairs=ONE_SHOT, levels=LEVELS, methods=METHODS, **changes):
    """A table as the script writes it, of networks that are twice as fast at each level."""
    networks = [
        ("dense", 0.0, repair) for repair in ("none", "no_bias", "retrain") if repair in repairs
    ]
    networks += [(m, s, repair) for m in methods for s in levels for repair in repairs]
    rows = [
        {
            "dataset": "fashion_mnist",
            "seed": seed,
            "method": method,
            "sparsity": sparsity,
            "repair": repair,
            "test_accuracy": accuracy(method, sparsity, seed, repair),
            "test_loss": 1.0,
            "live_fraction": round((1 - sparsity) ** 2, 6),
            "stored_fraction": 1.0,
            "layer_sizes": "784-50-10",
            "speedup": 2.0 ** (0, *levels).index(sparsity),
            "refit_images": 1000 if repair.startswith("refit") else 0,
            "retrain_epochs": 2 if repair == "retrain" else 0,
            "epochs": 10,
            "batch_size": 128,
            "learning_rate": 0.001,
            "device": "CPU, test",
            "versions": "tensorflow 2, numpy 2",
            **changes,
        }
        for seed in range(seeds)
        for method, sparsity, repair in networks
    ]
    return pandas.DataFrame(rows)[list(COLUMNS)].assign(kept=lambda table: 1 - table["sparsity"])


def curve(ax, method):
    """The mean curve of a method."""
    [line] = [line for line in ax.lines if line.get_label() == STYLES[method]["label"]]
    return line


def panels(**changes):
    """The panels of the analysis by title."""
    return {ax.get_title(): ax for ax in draw_analysis(make_rows(**changes)).axes}


def labels(axis):
    """Tick labels in view, in order of their values, of a figure that has been laid out."""
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels())
    return [label.get_text() for place, label in ticks if low <= place <= high]


# ----------------------------------------------------------------------------------------- table


def test_the_table_shows_mean_and_sample_standard_deviation_and_begins_with_the_dense_network():
    lines = accuracy_table(make_rows(), "none").splitlines()
    assert len(lines) == 2 + 1 + len(LEVELS)
    assert lines[0].split() == list(METHODS)
    assert lines[2].split() == ["0.00", *4 * ["0.4000", "\u00b1", "0.1000"]]  # of 0.3, 0.4, 0.5
    assert f"{accuracy('neuron', 0.9, 1):.4f} \u00b1 0.1000" in lines[4]


def test_the_spread_of_a_single_seed_is_unknown_and_not_shown():
    text = accuracy_table(make_rows(seeds=1), "refit")
    assert f"{accuracy('weight', 0.9, 0, 'refit'):.4f}" in text and "\u00b1" not in text


# --------------------------------------------------------------------------------------- figures


def test_the_main_figure_draws_the_means_of_both_methods_and_the_baselines():
    close_up, whole = draw_main(make_rows()).axes
    for ax in (close_up, whole):
        for method in ("weight", "neuron", "random_weight"):
            line = curve(ax, method)
            np.testing.assert_allclose(line.get_xdata(), [0.01, 0.1, 0.5, 1][::-1])
            expected = [accuracy("dense", 0, 1), *(accuracy(method, s, 1) for s in LEVELS)]
            np.testing.assert_allclose(line.get_ydata(), expected)
    drawn = {line.get_label() for line in whole.lines}
    assert STYLES["matched_weight"]["label"] not in drawn
    assert {"dense network: 0.400", "chance: 0.1"} <= drawn
    np.testing.assert_allclose(close_up.get_ylim(), (0.35, 0.41))


def test_the_band_is_one_standard_deviation_and_the_seeds_are_thin_lines():
    _, whole = draw_main(make_rows()).axes
    band = whole.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.5)
    assert band[:, 1].min() == pytest.approx(accuracy("weight", 0.99, 0))
    thin = [line for line in whole.lines if line.get_linewidth() == 0.5]
    assert len(thin) == 3 * 3  # seeds of three methods


def test_every_method_and_repair_has_a_style():
    assert set(STYLES) == {*network_pruning.METHODS, "scratch", *REPAIRS}


def test_baselines_lie_behind_the_methods():
    _, whole = draw_main(make_rows()).axes
    assert curve(whole, "random_weight").zorder < curve(whole, "weight").zorder
    assert curve(whole, "random_weight").get_linewidth() < curve(whole, "weight").get_linewidth()


def test_the_sparsity_axis_is_logarithmic_in_what_is_kept():
    _, whole = draw_main(make_rows()).axes
    places = whole.transData.transform([(kept, 0.5) for kept in (1, 0.1, 0.01)])[:, 0]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert places[1] > places[0]
    whole.figure.draw_without_rendering()
    assert labels(whole.xaxis) == ["0.99", "0.98", "0.95", "0.9", "0.8", "0.5", "0"]


def test_the_analysis_has_a_panel_for_each_repair_on_the_same_axes():
    drawn = panels(repairs=REPAIRS)
    assert list(drawn) == [*REPAIRS.values(), "speed"]
    for repair, title in REPAIRS.items():
        start = accuracy("dense", 0, 1, repair)
        expected = [start, *(accuracy("neuron", s, 1, repair) for s in LEVELS)]
        np.testing.assert_allclose(curve(drawn[title], "neuron").get_ydata(), expected)
        assert drawn[title].get_ylim() == (0, 1.02)
        assert drawn[title].get_xlim() == drawn["as pruned"].get_xlim()
    np.testing.assert_allclose(curve(drawn["speed"], "neuron").get_ydata(), [1, 2, 4, 8])
    drawn["speed"].figure.draw_without_rendering()
    assert labels(drawn["speed"].yaxis) == ["1x", "2x", "5x"]


def test_the_ladder_draws_every_repair_of_weights_and_neurons_by_live_weights_on_the_same_axes():
    weights, neurons = draw_ladder(make_rows(repairs=REPAIRS)).axes
    for ax, method in ((weights, "weight"), (neurons, "neuron")):
        assert ax.get_title() == STYLES[method]["label"]
        for repair in REPAIRS:
            line = curve(ax, repair)
            np.testing.assert_allclose(line.get_xdata(), [1, 0.25, 0.01, 0.0001])
            expected = [accuracy(method, s, 1, repair) for s in LEVELS]
            np.testing.assert_allclose(line.get_ydata()[1:], expected)
    assert weights.get_xlim() == neurons.get_xlim()
    assert weights.get_ylim() == neurons.get_ylim()


@pytest.mark.parametrize("repairs", [["none"], ["none", "no_bias"], ["none", "retrain"]])
@pytest.mark.parametrize("method", METHODS)
def test_panels_without_data_are_not_drawn(repairs, method):
    drawn = panels(repairs=repairs, methods=[method])
    assert len(drawn) == len(repairs) + 1
    for ax in [*drawn.values(), *draw_main(make_rows(methods=[method])).axes]:
        assert curve(ax, method)
    [ladder] = draw_ladder(make_rows(repairs=repairs, methods=[method])).axes
    drawn = {line.get_label() for line in ladder.lines}
    assert {name for name in REPAIRS if REPAIRS[name] in drawn} == set(repairs)


@pytest.mark.parametrize("levels", [(0.1,), (0.25, 0.3, 0.35), (0.5, 1), (0.5, 0.9999, 1)])
def test_every_axis_is_labelled_with_plain_numbers(levels):
    rows = make_rows(levels=levels)
    figures = (draw_main(rows), draw_analysis(rows), draw_ladder(rows))
    for figure in figures:
        figure.draw_without_rendering()
    for ax in (figures[0].axes[1], *figures[1].axes, figures[2].axes[0]):
        for axis in (ax.xaxis, ax.yaxis):
            shown = labels(axis)
            assert 0 < len(shown) < 12
            assert not any(sign in text for text in shown for sign in "\u00d7^$")


def test_where_nothing_is_left_alive_no_line_is_drawn():
    drawn = panels(levels=(0.5, 1))
    for ax in drawn.values():
        assert len(curve(ax, "weight").get_xdata()) == 2


@pytest.mark.parametrize("draw", [draw_main, draw_ladder, draw_analysis])
def test_no_text_runs_off_a_figure_even_of_a_deep_network(draw):
    deep = "-".join(["784"] + ["1000"] * 40 + ["10"])
    device = "CPU, " + "a processor with a long name " * 3
    figure = draw(make_rows(layer_sizes=deep, device=device, repairs=REPAIRS))
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    for text in figure.texts + [ax.title for ax in figure.axes] + figure.legends:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text


def test_title_and_caption_come_from_the_csv():
    figure = draw_main(make_rows(epochs=7))
    [legend] = figure.legends
    assert legend.get_title().get_text() == "Fashion-MNIST: accuracy after one-shot pruning"
    caption = figure.get_supxlabel().replace("\n", " ")
    for part in ("784-50-10", "epochs of Adam: 7", "0.001", "128", "seeds: 3", "CPU, test"):
        assert part in caption
    assert "Images to refit on: 0" in caption  # nothing there is repaired
    assert "Images to refit on: 1000" in draw_analysis(make_rows()).get_supxlabel()
    [legend] = draw_main(make_rows(dataset="digits")).legends
    assert legend.get_title().get_text().startswith("digits: ")


@pytest.mark.filterwarnings("error")
def test_figures_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = make_rows(repairs=REPAIRS).drop(columns="kept").to_dict("records")
    pictures = []
    for _ in range(2):
        pandas.DataFrame(rows).to_csv(tmp_path / "mnist.csv", index=False)
        draw_figures(tmp_path / "mnist.csv")
        pictures.append([path.read_bytes() for path in sorted(tmp_path.glob("*.png"))])
        random.Random(0).shuffle(rows)
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3

"""What the table and the figures show, from the CSV alone."""

import csv
import random
import subprocess
import sys

import numpy as np
import pandas
import pytest
from conftest import CLEAN, SCRIPT
from matplotlib.figure import Figure

from network_pruning import (
    STYLES,
    add_texts,
    draw_analysis,
    draw_figures,
    draw_reproduction,
    table,
)

METHODS = ("weight", "neuron", "matched_weight", "random_weight")
LEVELS = (0, 0.5, 0.9, 0.99)


def accuracy(method, sparsity, run):
    """An accuracy of its own for each row, 0.1 more in each run."""
    return 0.3 + 0.1 * run - 0.2 * sparsity - 0.01 * METHODS.index(method) * (sparsity > 0)


def make_rows(runs=3, retrain_epochs=(0,), levels=LEVELS, **changes):
    """Rows as the script writes them, of a network that is twice as fast at each level."""
    return [
        {
            "dataset": "mnist",
            "run": run,
            "seed": 0,
            "method": method,
            "sparsity": sparsity,
            "retrain_epochs": epochs,
            "achieved_sparsity": sparsity,
            "test_accuracy": accuracy(method, sparsity, run) + 0.1 * (epochs > 0),
            "unbiased_accuracy": accuracy(method, sparsity, run) + 0.05,
            "test_loss": 1.0,
            "live_fraction": round(1 - sparsity, 6),
            "stored_fraction": 1.0,
            "layer_sizes": "784-50-10",
            "speedup": 2.0 ** levels.index(sparsity),
            "epochs": 10,
            "batch_size": 128,
            "learning_rate": 0.001,
            "device": "CPU, test",
            "versions": "tensorflow 2, numpy 2",
            **changes,
        }
        for run in range(runs)
        for method in METHODS
        for epochs in retrain_epochs
        for sparsity in levels
    ]


def frame(**changes):
    """The same as a table of pandas, with shares in percent."""
    rows = pandas.DataFrame(make_rows(**changes))
    return rows.assign(kept=100 * (1 - rows["sparsity"]), live=100 * rows["live_fraction"])


def figure_of(draw, rows):
    """A figure as the script draws it."""
    figure = Figure(layout="constrained")
    draw(figure, rows)
    add_texts(figure, "Fashion-MNIST: a title", rows)
    return figure


def curve(ax, method):
    """The mean curve of a method."""
    [line] = [line for line in ax.lines if line.get_label() == STYLES[method][0]]
    return line


def close(values):
    """A sequence to compare with."""
    return pytest.approx(np.array(values))


def labels(axis):
    """Tick labels in view, as they are drawn, in order of their values."""
    axis.get_figure().draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels())
    return [label.get_text() for place, label in ticks if low <= place <= high]


# ----------------------------------------------------------------------------------------- table


def test_the_table_shows_mean_and_sample_standard_deviation():
    lines = table(make_rows()).splitlines()
    assert "weight" in lines[0] and "random_weight" in lines[0]
    assert "0.4000 \u00b1 0.1000" in lines[2]  # of 0.3, 0.4 and 0.5


def test_the_spread_of_a_single_run_is_unknown_and_not_shown():
    text = table(make_rows(runs=1))
    assert "0.3000" in text and "\u00b1" not in text


def test_retrained_networks_have_lines_of_their_own():
    text = table(make_rows(retrain_epochs=(0, 2)))
    assert len(text.splitlines()) == 2 + 2 * len(LEVELS) and "0.5000 \u00b1 0.1000" in text


# --------------------------------------------------------------------------------------- figures


def test_the_reproduction_draws_the_means_of_both_methods_and_the_baselines():
    close_up, whole = figure_of(draw_reproduction, frame()).axes
    for ax in (close_up, whole):
        for method in ("weight", "neuron", "random_weight"):
            line = curve(ax, method)
            np.testing.assert_allclose(line.get_xdata(), 100 * (1 - np.array(LEVELS)))
            np.testing.assert_allclose(line.get_ydata(), [accuracy(method, s, 1) for s in LEVELS])
    drawn = {line.get_label() for line in whole.lines}
    assert STYLES["matched_weight"][0] not in drawn
    assert {"dense network: 0.400", "chance: 0.1"} <= drawn
    assert close_up.get_ylim() == close((0.35, 0.41))


def test_the_band_is_one_standard_deviation_and_the_runs_are_thin_lines():
    _, whole = figure_of(draw_reproduction, frame()).axes
    band = whole.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == close(0.5) and band[:, 1].min() == close(0.1 + 0.002)
    thin = [line for line in whole.lines if line.get_linewidth() == 0.5]
    assert len(thin) == 3 * 3  # runs of three methods


def test_baselines_lie_behind_the_methods():
    _, whole = figure_of(draw_reproduction, frame()).axes
    assert curve(whole, "random_weight").zorder < curve(whole, "weight").zorder
    assert curve(whole, "random_weight").get_linewidth() < curve(whole, "weight").get_linewidth()


def test_the_sparsity_axis_is_logarithmic_in_what_is_kept():
    close_up, whole = figure_of(draw_reproduction, frame()).axes
    places = whole.transData.transform([(kept, 0.5) for kept in (100, 10, 1)])[:, 0]
    assert places[1] - places[0] == close(places[2] - places[1]) and places[1] > places[0]
    assert labels(whole.xaxis) == ["0.99", "0.98", "0.95", "0.9", "0.8", "0.5", "0"]
    assert labels(close_up.xaxis) == ["1", "2", "5", "10", "20", "50", "100"]


def test_the_analysis_draws_live_weights_bias_speed_and_retraining():
    figure = figure_of(draw_analysis, frame(retrain_epochs=(0, 2)))
    live, unbiased, speed, again = figure.axes
    one_shot = [accuracy("neuron", s, 1) for s in LEVELS]
    np.testing.assert_allclose(curve(live, "neuron").get_xdata(), [100, 50, 10, 1])
    np.testing.assert_allclose(curve(live, "neuron").get_ydata(), one_shot)
    assert live.get_xlim()[0] > live.get_xlim()[1]
    with_bias, without = (
        line for line in unbiased.lines if line.get_label() == STYLES["neuron"][0]
    )
    np.testing.assert_allclose(without.get_ydata(), np.add(one_shot, 0.05))
    np.testing.assert_allclose(with_bias.get_ydata(), one_shot)
    assert with_bias.get_linewidth() < without.get_linewidth()
    np.testing.assert_allclose(curve(speed, "neuron").get_ydata(), [1, 2, 4, 8])
    np.testing.assert_allclose(curve(again, "neuron").get_ydata(), np.add(one_shot, 0.1))
    assert "epochs: 2" in again.get_title()
    assert {ax.get_ylim() for ax in (live, unbiased, again)} == {(0, 1.02)}


def test_without_retraining_there_is_no_panel_for_it():
    assert len(figure_of(draw_analysis, frame()).axes) == 3


def test_logarithmic_axes_are_labelled_with_plain_numbers():
    live, _, speed = figure_of(draw_analysis, frame()).axes
    assert labels(speed.yaxis) == ["1x", "2x", "5x"]
    assert labels(live.xaxis) == ["1", "2", "5", "10", "20", "50", "100"]


@pytest.mark.parametrize("levels", [(0,), (0, 0.1), (0, 0.6), (0, 0.25, 0.3, 0.35), (0, 0.5, 1)])
def test_a_short_axis_is_labelled_with_plain_numbers_too(levels):
    rows = frame(levels=levels)
    rows["speedup"] = 1 + 0.2 * rows["sparsity"]
    axes = [*figure_of(draw_reproduction, rows).axes, *figure_of(draw_analysis, rows).axes]
    for ax in axes:
        for axis in (ax.xaxis, ax.yaxis):
            shown = labels(axis)
            assert shown and not any(sign in text for text in shown for sign in "\u00d7^$")


def test_what_keeps_nothing_is_left_out_of_a_logarithmic_axis_without_harm():
    axes = figure_of(draw_analysis, frame(levels=(0, 0.5, 0.9999, 1))).axes
    for ax in axes:
        assert ax.get_xlim() == close((120, 0.1 / 1.2))
        assert 8 < len(labels(ax.xaxis)) < 11


@pytest.mark.parametrize("draw", [draw_reproduction, draw_analysis])
def test_no_text_runs_off_a_figure_even_of_a_deep_network(draw):
    deep = "-".join(["784"] + ["1000"] * 40 + ["10"])
    rows = frame(layer_sizes=deep, device="CPU, " + "a processor with a long name " * 3)
    figure = figure_of(draw, rows)
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    for text in figure.texts + [ax.title for ax in figure.axes] + figure.legends:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text


def test_the_caption_comes_from_the_csv():
    figure = figure_of(draw_reproduction, frame(epochs=7))
    caption = figure.get_supxlabel().replace("\n", " ")
    for part in ("784-50-10", "epochs of Adam: 7", "0.001", "128", "runs: 3", "CPU, test"):
        assert part in caption


# ---------------------------------------------------------------------------------------- replot


def write(path, rows):
    """Write rows as a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.filterwarnings("error")
def test_figures_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = make_rows(retrain_epochs=(0, 1))
    for row in rows:
        row["layer_sizes"] = f"784-{round(50 * (1 - row['sparsity']))}-10"
    pictures = []
    for _ in range(2):
        write(tmp_path / "mnist.csv", rows)
        draw_figures(tmp_path / "mnist.csv")
        pictures.append([path.read_bytes() for path in sorted(tmp_path.glob("*.png"))])
        random.Random(0).shuffle(rows)
    assert pictures[0] == pictures[1] and len(pictures[0]) == 2


def test_replot_draws_every_csv_file_again_without_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    for name in ("mnist", "my-own"):
        write(tmp_path / f"{name}.csv", make_rows())
    done = subprocess.run(
        [sys.executable, SCRIPT, "--replot", "--output-dir", tmp_path],
        env={**CLEAN, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a CSV file of this script: EmptyDataError"),
        ("a,b\n1,2\n", "is not a CSV file of this script: KeyError"),
        ("dataset,run\nmnist\n", "is not a CSV file of this script: KeyError"),
    ],
)
def test_replot_names_a_file_that_it_cannot_draw(run_main, tmp_path, content, message):
    (tmp_path / "mnist.csv").write_text(content)
    done = run_main("--replot", "--output-dir", ".")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: mnist.csv" in done.stderr and message in done.stderr
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("layer_sizes", ["7", "784-10-0", "784-x"])
def test_replot_names_a_file_with_layer_sizes_that_are_none(run_main, tmp_path, layer_sizes):
    write(tmp_path / "mnist.csv", make_rows(layer_sizes=layer_sizes))
    done = run_main("--replot", "--output-dir", ".")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: mnist.csv is not a CSV file of this script: " in done.stderr


def test_replot_of_no_folder_says_so_and_makes_none(run_main, tmp_path):
    done = run_main("--replot", "--output-dir", "empty")
    assert done.returncode == 1 and "there is no CSV file in empty" in done.stderr
    assert not (tmp_path / "empty").exists()

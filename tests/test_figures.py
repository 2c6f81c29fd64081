"""What the table and the figures show, from the rows alone."""

import itertools

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure

from network_pruning import FIGURES, REPAIRS, report, save_results, style_of

METHODS = ("weight", "neuron", "matched_weight", "random_weight")
LEVELS = (0.5, 0.9, 0.99)
STATES = (*REPAIRS, "retrain")


def accuracy(method, sparsity, seed, repair="none"):
    """An accuracy of its own for each row, 0.1 more with each seed."""
    lost = 0.2 * sparsity + 0.01 * (len(method) % 5) * (method != "dense")
    return 0.3 + 0.1 * seed - lost + 0.02 * STATES.index(repair)


RECIPE = {"hidden_units": "50", "epochs": 10, "batch_size": 128, "learning_rate": 0.001}
RECIPE |= {"refit_images": 1000, "retrain_epochs": 2, "device": "CPU"}


def make_rows(seeds=range(3), repairs=STATES, levels=LEVELS, methods=METHODS, **changes):
    """Rows as the script writes them, of networks that are twice as fast at each level."""
    networks = [("dense", 0.0), *itertools.product(methods, levels)]
    keys = [(*k[1], k[0], k[2]) for k in itertools.product(seeds, networks, repairs)]
    rows = pandas.DataFrame(keys, columns=["method", "sparsity", "seed", "repair"])
    return rows.assign(
        test_accuracy=list(itertools.starmap(accuracy, keys)),
        live_fraction=((1 - rows["sparsity"]) ** 2).round(6),
        layer_sizes="64-50-5",
        speedup=[2.0 ** (0, *levels).index(sparsity) for sparsity in rows["sparsity"]],
        versions="tensorflow 2, numpy 2",
        **RECIPE | changes,
    )


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw the figures of some rows; return them laid out, by the end of their files' names."""

    def draw(rows, name="mnist"):
        figures = {}

        def savefig(figure, path):
            figure.draw_without_rendering()
            figures[list(FIGURES)[len(figures)]] = figure
            path.touch()

        monkeypatch.setattr(Figure, "savefig", savefig)
        save_results(name, rows, tmp_path)
        return figures

    return draw


def curve(ax, name):
    """Places on the x axis and accuracies of a method or repair, as drawn."""
    [line] = [line for line in ax.lines if line.get_label() == style_of(name)["label"]]
    return line.get_xdata(), 1 - line.get_ydata()


def labels(axis):
    """The labels of the ticks that are in sight."""
    low, high = sorted(axis.get_view_interval())
    return [
        t.get_text() for t, x in zip(axis.get_ticklabels(), axis.get_ticklocs()) if low < x < high
    ]


def test_the_table_shows_means_as_pruned_refit_and_retrained_and_the_files(capsys, tmp_path):
    report("mnist", make_rows(), tmp_path)
    title, heads, _, *rows, _, saved = capsys.readouterr().out.strip().splitlines()
    assert title == "mnist: mean test accuracy"
    assert heads.split() == ["sparsity", "0.00", "0.50", "0.90", "0.99"]
    repairs = ("none", "refit", "retrain")
    assert [row[:23].split()[-1] for row in rows] == 5 * list(repairs)
    assert rows[0].split() == ["dense", "none", f"{accuracy('dense', 0, 1):.3f}"]
    means = [f"{accuracy('weight', s, 1):.3f}" for s in LEVELS]
    assert rows[3].split() == ["weight", "none", *means]
    assert saved == f"saved in {tmp_path}/mnist.csv, drawn in {tmp_path}/mnist-*.png"


def test_the_first_figure_shows_means_band_and_seeds_of_each_method_as_pruned_and_refit(drawn):
    panels = drawn(make_rows())["accuracy"].axes
    for ax, repair in zip(panels, ("none", "refit"), strict=True):
        assert ax.get_title() == style_of(repair)["label"]
        for method in ("weight", "neuron", "random_weight"):
            places, means = curve(ax, method)
            np.testing.assert_allclose(places, [1, 0.5, 0.1, 0.01])
            networks = [("dense", 0), *((method, sparsity) for sparsity in LEVELS)]
            np.testing.assert_allclose(means, [accuracy(*n, 1, repair) for n in networks])
        # those as pruned, in both: matched weights are left out
        shown = {line.get_label() for line in ax.lines}
        assert {"dense network: 0.400", "chance: 0.200"} <= shown
        assert sum(line.get_linewidth() == 0.5 for line in ax.lines) == 3 * 3
    band = 1 - panels[0].collections[0].get_paths()[0].vertices  # one standard deviation
    assert band[:, 1].max() == pytest.approx(0.5)
    assert band[:, 1].min() == pytest.approx(accuracy("weight", 0.99, 0))
    assert labels(panels[1].xaxis) == ["0", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99"]


def test_accuracies_have_a_log_scale_of_the_error_and_one_range_in_all_panels(drawn):
    rows = make_rows()
    rows["test_accuracy"] *= 1.7  # up to 0.986
    for figure in drawn(rows).values():
        axes = [ax for ax in figure.axes if ax.get_title() != "speed"]
        bottom, top = axes[0].get_ylim()
        assert all(ax.get_ylim() == (bottom, top) for ax in axes)
        best = rows.loc[rows["repair"] == "refit", "test_accuracy"].max()
        assert bottom > 0.8 > 1 - best > top
        assert "0.9" in labels(axes[0].yaxis)
        errors = [[0.5, 1 - accuracy] for accuracy in (0.6, 0.8, 0.98, 0.99)]
        y = axes[0].transData.transform(errors)[:, 1]
        assert y[0] < y[1] and y[1] - y[0] == pytest.approx(y[3] - y[2])


def test_every_method_is_drawn_after_each_repair_on_the_same_axes(drawn):
    panels = {
        ax.get_title(): ax for ax in drawn(make_rows(methods=[*METHODS, "own"]))["methods"].axes
    }
    titles = [style_of(repair)["label"] for repair in STATES]
    assert list(panels) == [*titles, "speed"]
    for repair, title in zip(STATES, titles):
        for method in (*METHODS, "own"):  # without a style, under its own name
            start = accuracy("dense", 0, 1, repair)
            expected = [start, *(accuracy(method, s, 1, repair) for s in LEVELS)]
            np.testing.assert_allclose(curve(panels[title], method)[1], expected)
        assert panels[title].get_xlim() == panels["as pruned"].get_xlim()
    np.testing.assert_allclose(1 - curve(panels["speed"], "neuron")[1], [1, 2, 4, 8])


def test_repairs_are_drawn_by_live_weights_every_network_within_the_axes(drawn):
    rows = make_rows(methods=["weight", "neuron"])
    rows.loc[(rows["sparsity"] == 0.99) & (rows["method"] == "neuron"), "live_fraction"] = 0.00005
    axes = drawn(rows)["repairs"].axes
    for ax, method in zip(axes, ("weight", "neuron"), strict=True):
        assert ax.get_title() == style_of(method)["label"]
        for repair in STATES:
            places, means = curve(ax, repair)
            np.testing.assert_allclose(places[:3], [1, 0.25, 0.01])
            expected = [accuracy(method, s, 1, repair) for s in LEVELS]
            np.testing.assert_allclose(means[1:], expected)
        assert min(ax.get_xlim()) < 0.00005
    assert len(drawn(make_rows(methods=["neuron", "scratch"]))["repairs"].axes) == 1


@pytest.mark.parametrize("levels", [(0.25, 0.3), (0.5, 0.9999, 1), (1,)])
@pytest.mark.parametrize("methods", [["weight"], ["own"], METHODS])
def test_whatever_was_run_is_drawn_but_networks_of_which_nothing_is_left(drawn, methods, levels):
    rows = make_rows(levels=levels, methods=methods, repairs=REPAIRS, seeds=[0])
    for ax in itertools.chain(*(figure.axes for figure in drawn(rows).values())):
        marked = [line for line in ax.lines if line.get_marker() != "None"]
        assert len(marked) >= len(set(methods) - {"matched_weight"})
        assert all(np.nanmin(line.get_xdata()) > 0 for line in marked)


def test_the_caption_says_what_was_run_and_title_and_texts_stay_within_the_figure(drawn):
    deep = "-".join(40 * ["1000"])  # a long caption
    rows = make_rows(hidden_units=deep)
    rows.loc[rows["seed"] == 1, "device"] = "GPU, H200"
    for figure, (title, _) in zip(drawn(rows, "fashion_mnist").values(), FIGURES.values()):
        assert figure.legends[0].get_title().get_text() == f"Fashion-MNIST: {title}"
        caption = " ".join(figure.get_supxlabel().split())
        assert "Line: mean; band: deviation; pale: single networks; hidden units: 1000-" in caption
        assert "; epochs: 10; batch size: 128; learning rate: 0.001; refit images: 1000" in caption
        assert (
            "; seed: 0 and 1 and 2; device: CPU and GPU, H200; versions: tensorflow 2," in caption
        )
        width, height = figure.canvas.get_width_height()
        for text in (*figure.texts, *(ax.title for ax in figure.axes), *figure.legends):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text

"""What the table and the figures show, from the rows alone."""

import itertools

import numpy as np
import pandas
import pytest
from conftest import KEY
from matplotlib.figure import Figure

from network_pruning import FIGURES, REPAIRS, add_caption, report, save_results, style_of

ACCURACY, BY_REPAIR, BY_METHOD = (draw for _, draw in FIGURES.values())
METHODS = ("weight", "neuron", "matched_weight", "random_weight")
LEVELS = (0.5, 0.9, 0.99)
STATES = (*REPAIRS, "retrain")


def accuracy(method, sparsity, seed, repair="none"):
    """An accuracy of its own for each row, 0.1 more with each seed."""
    lost = 0.2 * sparsity + 0.01 * (len(method) % 5) * (method != "dense")
    return 0.3 + 0.1 * seed - lost + 0.02 * STATES.index(repair)


RECIPE = {"hidden_units": "[50]", "epochs": "10", "batch_size": "128", "learning_rate": "0.001"}
RECIPE |= {"refit_images": "1000", "retrain_epochs": "2", "script": "000000ff", "device": "CPU"}


def make_rows(seeds=range(3), repairs=STATES, levels=LEVELS, methods=METHODS, **changes):
    """Rows as the script writes them, of networks that are twice as fast at each level."""
    networks = [("dense", 0.0), *itertools.product(methods, levels)]
    keys = [(*k[1], k[0], k[2]) for k in itertools.product(seeds, networks, repairs)]
    rows = pandas.DataFrame(keys, columns=["method", "sparsity", "seed", "repair"])
    return rows.assign(
        test_accuracy=list(itertools.starmap(accuracy, keys)),
        live_fraction=((1 - rows["sparsity"]) ** 2).round(6),
        speedup=[2.0 ** (0, *levels).index(sparsity) for sparsity in rows["sparsity"]],
        majority_accuracy=0.2,
        versions="tensorflow 2, numpy 2",
        **RECIPE | changes,
    )


def joined(*tables):
    """The rows of several jobs, each network once."""
    return pandas.concat(tables, ignore_index=True).drop_duplicates(KEY)


def panels(draw, rows):
    """The panels of a figure that has been laid out."""
    figure = Figure(layout="constrained")
    draw(figure, rows)
    figure.draw_without_rendering()
    return figure.axes


def curve(ax, name):
    """Places and means of a method or repair, as drawn."""
    [line] = [line for line in ax.lines if line.get_label() == style_of(name)["label"]]
    return line.get_xdata(), line.get_ydata()


def test_the_tables_show_means_as_pruned_refit_and_retrained_and_the_files(capsys, tmp_path):
    some = make_rows(seeds=[0], methods=["own"])
    report("mnist", joined(make_rows(levels=[0.5]), make_rows(seeds=[2]), some), tmp_path)
    said = capsys.readouterr().out
    title, heads, _, dense, *methods = said.split("\n\n")[0].strip().splitlines()
    assert title == "mnist, as pruned: mean test accuracy of all n seeds"
    assert heads.split() == ["sparsity", "n", "0.0", "0.5", "0.9", "0.99"]
    assert dense.split() == ["dense", "3", f"{accuracy('dense', 0, 1):.3f}"]
    # no mean of some of the seeds
    assert methods[0].split() == ["weight", "3", f"{accuracy('weight', 0.5, 1):.3f}"]
    assert methods[-1].split()[:3] == ["own", "1", f"{accuracy('own', 0.5, 0):.3f}"]
    assert "mnist, refit" in said and "mnist, retrained" in said
    assert said.endswith(f"\nsaved in {tmp_path}/mnist.csv, drawn in {tmp_path}/mnist-*.png\n")


def test_the_first_figure_shows_means_band_and_seeds_of_each_method_as_pruned():
    close_up, whole = panels(ACCURACY, make_rows())
    for ax in (close_up, whole):
        for method in ("weight", "neuron", "random_weight"):
            places, means = curve(ax, method)
            np.testing.assert_allclose(places, [1, 0.5, 0.1, 0.01])
            expected = [accuracy("dense", 0, 1), *(accuracy(method, s, 1) for s in LEVELS)]
            np.testing.assert_allclose(means, expected)
    drawn = {line.get_label() for line in whole.lines}
    assert {"dense network: 0.400", "always one class: ≤ 0.200"} <= drawn
    np.testing.assert_allclose(close_up.get_ylim(), (0.35, 0.41))
    band = whole.collections[0].get_paths()[0].vertices  # one standard deviation
    assert band[:, 1].max() == pytest.approx(0.5)
    assert band[:, 1].min() == pytest.approx(accuracy("weight", 0.99, 0))
    assert sum(line.get_linewidth() == 0.5 for line in whole.lines) == 3 * 3


def test_every_method_is_drawn_after_each_repair_on_the_same_axes():
    rows = make_rows(methods=[*METHODS, "own"])
    drawn = {ax.get_title(): ax for ax in panels(BY_METHOD, rows)}
    titles = [style_of(repair)["label"] for repair in STATES]
    assert list(drawn) == [*titles, "speed"]
    for repair, title in zip(STATES, titles):
        for method in (*METHODS, "own"):  # without a style, under its own name
            start = accuracy("dense", 0, 1, repair)
            expected = [start, *(accuracy(method, s, 1, repair) for s in LEVELS)]
            np.testing.assert_allclose(curve(drawn[title], method)[1], expected)
        assert drawn[title].get_ylim() == (0, 1.02)
        assert drawn[title].get_xlim() == drawn["as pruned"].get_xlim()
    np.testing.assert_allclose(curve(drawn["speed"], "neuron")[1], [1, 2, 4, 8])


def test_repairs_are_drawn_by_live_weights_every_network_within_the_axes():
    neurons = make_rows(methods=["neuron"])
    neurons.loc[neurons["sparsity"] == 0.99, "live_fraction"] = 0.00005
    axes = panels(BY_REPAIR, joined(make_rows(methods=["weight"]), neurons))
    for ax, method in zip(axes, ("weight", "neuron"), strict=True):
        assert ax.get_title() == style_of(method)["label"]
        for repair in STATES:
            places, means = curve(ax, repair)
            np.testing.assert_allclose(places[:3], [1, 0.25, 0.01])
            expected = [accuracy(method, s, 1, repair) for s in LEVELS]
            np.testing.assert_allclose(means[1:], expected)
        assert min(ax.get_xlim()) < 0.00005
    assert len(panels(BY_REPAIR, make_rows(methods=["neuron", "scratch"]))) == 1


@pytest.mark.parametrize("levels", [(0.25, 0.3), (0.5, 0.9999, 1), (1,)])
@pytest.mark.parametrize("draw", [ACCURACY, BY_REPAIR, BY_METHOD])
@pytest.mark.parametrize("methods", [["weight"], ["own"], METHODS])
def test_whatever_was_run_is_drawn_but_networks_of_which_nothing_is_left(draw, methods, levels):
    for ax in panels(draw, make_rows(levels=levels, methods=methods, repairs=REPAIRS)):
        marked = [line for line in ax.lines if line.get_marker() != "None"]
        assert all(line.get_xdata().min() > 0 for line in marked)


def test_a_curve_of_some_seeds_starts_at_their_dense_networks_and_has_no_bump():
    """A mean of other seeds than its neighbours' would look like an effect of the level."""
    some = [make_rows(methods=["neuron"], seeds=[2]), make_rows(levels=(0.8,), seeds=[2])]
    _, whole = panels(ACCURACY, joined(make_rows(methods=["weight"]), *some))
    places, means = curve(whole, "neuron")
    np.testing.assert_allclose(means[0], accuracy("dense", 0, 2))
    assert len(places) == 5
    places, means = curve(whole, "weight")
    np.testing.assert_allclose(means[0], accuracy("dense", 0, 1))
    np.testing.assert_allclose(places, [1, 0.5, 0.1, 0.01])
    single = [line for line in whole.lines if line.get_linewidth() == 0.5]
    assert max(len(line.get_xdata()) for line in single) == 5  # but it is seen


def test_the_caption_of_one_seed_speaks_of_no_spread():
    figure = Figure()
    add_caption(figure, make_rows(seeds=[0]))
    assert "Seeds per point: 1. CPU" in " ".join(figure.get_supxlabel().split())


def test_title_and_caption_come_from_the_rows_and_nothing_runs_off(tmp_path, monkeypatch):
    figures = []

    def savefig(figure, path):
        figure.draw_without_rendering()
        figures.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    deep = str([1000] * 40)  # a long caption
    rows = joined(make_rows(hidden_units=deep), make_rows(seeds=[3], levels=[0.7]))
    save_results("fashion_mnist", rows, tmp_path)
    for figure, (title, _) in zip(figures, FIGURES.values(), strict=True):
        assert figure.legends[0].get_title().get_text() == f"Fashion-MNIST: {title}"
        caption = " ".join(figure.get_supxlabel().split())
        assert f"Hidden units: {deep}, ReLU; epochs of Adam: 10, at a rate of 0.001" in caption
        assert "Seeds per point: 1 to 4; mean, standard deviation" in caption
        assert "(pale). CPU; tensorflow 2, numpy 2; script 000000ff." in caption
        width, height = figure.canvas.get_width_height()
        for text in (*figure.texts, *(ax.title for ax in figure.axes), *figure.legends):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text

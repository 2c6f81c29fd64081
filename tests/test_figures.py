"""What the table and the figures show, from the CSV alone."""

import numpy as np
import pandas
import pytest

from network_pruning import (
    COLUMNS,
    DEFAULT_METHODS,
    FIGURES,
    STYLES,
    curves_of,
    draw_accuracy,
    draw_analysis,
    draw_figures,
    draw_ladder,
    report,
    style_of,
)

METHODS = ("weight", "neuron", "matched_weight", "random_weight")
LEVELS = (0.5, 0.9, 0.99)
ONE_SHOT = ("none", "no_bias", "refit_output", "refit")
REPAIRS = (*ONE_SHOT, "retrain")


def accuracy(method, sparsity, seed, repair="none"):
    """An accuracy of its own for each row, 0.1 more with each seed."""
    if method == "dense":
        return 0.3 + 0.1 * seed + 0.005 * (repair == "retrain")
    lost = 0.2 * sparsity + 0.01 * (len(method) % 5)
    return 0.3 + 0.1 * seed - lost + 0.02 * REPAIRS.index(repair)


def make_rows(seeds=range(3), repairs=ONE_SHOT, levels=LEVELS, methods=METHODS, **changes):
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
            "speedup": 2.0 ** (0, *levels).index(sparsity),
            "layer_sizes": "784-50-10",
            "data": 1,
            "majority_accuracy": 0.2,
            "hidden_units": "50",
            "epochs": 10,
            "batch_size": 128,
            "learning_rate": 0.001,
            "refit_images": 1000,
            "retrain_epochs": 2,
            "network": seed,
            "script": 255,
            "device": "CPU, test",
            "versions": "tensorflow 2, numpy 2",
            **changes,
        }
        for seed in seeds
        for method, sparsity, repair in networks
    ]
    return pandas.DataFrame(rows)[list(COLUMNS)]


def joined(tables):
    """The rows of several jobs, each network once."""
    return pandas.concat(tables).drop_duplicates(["seed", "method", "sparsity", "repair"])


def make_curves(**changes):
    """The curves of such a table."""
    return curves_of(make_rows(**changes))


def curve(ax, method):
    """The mean curve of a method."""
    [line] = [line for line in ax.lines if line.get_label() == style_of(method)["label"]]
    return line


def panels(**changes):
    """The panels of the analysis by title."""
    return {ax.get_title(): ax for ax in draw_analysis(make_curves(**changes)).axes}


def labels(axis):
    """Tick labels in view, in order of their values, of a figure that has been laid out."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    shown = {tick.get_loc(): tick.label1.get_text() for tick in ticks if tick.label1.get_visible()}
    return [text for place, text in sorted(shown.items()) if low <= place <= high and text]


# ----------------------------------------------------------------------------------------- table


def test_the_tables_show_means_as_pruned_refit_and_retrained_and_the_files(capsys, tmp_path):
    report(make_curves(methods=("a student's own", *METHODS), repairs=REPAIRS), tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("\nfashion_mnist, as pruned: mean test accuracy at each sparsity\n")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[3:7]] == list(METHODS)
    assert lines[2].split() == ["method", "(seeds)", "0.00", "0.50", "0.90", "0.99"]
    means = [accuracy("dense", 0, 1), *(accuracy("neuron", s, 1) for s in LEVELS)]
    assert lines[4].split()[1:] == ["(3)", *(f"{mean:.3f}" for mean in means)]
    assert "fashion_mnist, refit" in said and "fashion_mnist, retrained" in said
    assert f"saved in {tmp_path}/fashion_mnist.csv" in lines[-1]


# --------------------------------------------------------------------------------------- figures


def test_the_main_figure_draws_the_means_of_both_methods_and_the_baselines():
    close_up, whole = draw_accuracy(make_curves()).axes
    for ax in (close_up, whole):
        for method in ("weight", "neuron", "random_weight"):
            line = curve(ax, method)
            np.testing.assert_allclose(line.get_xdata(), [0.01, 0.1, 0.5, 1][::-1])
            expected = [accuracy("dense", 0, 1), *(accuracy(method, s, 1) for s in LEVELS)]
            np.testing.assert_allclose(line.get_ydata(), expected)
    drawn = {line.get_label() for line in whole.lines}
    assert STYLES["matched_weight"]["label"] not in drawn
    assert {"dense network: 0.400", "most frequent class: 0.200"} <= drawn
    np.testing.assert_allclose(close_up.get_ylim(), (0.35, 0.41))


def test_the_band_is_one_standard_deviation_and_the_seeds_are_thin_lines():
    _, whole = draw_accuracy(make_curves()).axes
    band = whole.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.5)
    assert band[:, 1].min() == pytest.approx(accuracy("weight", 0.99, 0))
    thin = [line for line in whole.lines if line.get_linewidth() == 0.5]
    assert len(thin) == 3 * 3  # seeds of three methods


def test_every_default_method_and_repair_has_a_style_and_others_are_drawn_under_their_own_name():
    assert {*DEFAULT_METHODS, *REPAIRS, "scratch"} <= set(STYLES)
    drawn = panels(methods=["weight", "mine"], repairs=["none"])
    assert list(drawn) == ["as pruned", "speed"]
    own = curve(drawn["as pruned"], "mine")
    assert own.get_color() != curve(drawn["as pruned"], "weight").get_color()


def test_baselines_lie_behind_the_methods():
    _, whole = draw_accuracy(make_curves()).axes
    assert curve(whole, "random_weight").zorder < curve(whole, "weight").zorder
    assert curve(whole, "random_weight").get_linewidth() < curve(whole, "weight").get_linewidth()


def test_the_sparsity_axis_is_logarithmic_in_what_is_kept():
    _, whole = draw_accuracy(make_curves()).axes
    places = whole.transData.transform([(kept, 0.5) for kept in (1, 0.1, 0.01)])[:, 0]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert places[1] > places[0]
    whole.figure.draw_without_rendering()
    assert labels(whole.xaxis) == ["0.99", "0.98", "0.95", "0.9", "0.8", "0.5", "0"]


def test_the_analysis_has_a_panel_for_each_repair_on_the_same_axes():
    drawn = panels(repairs=REPAIRS)
    titles = [STYLES[repair]["label"] for repair in REPAIRS]
    assert list(drawn) == [*titles, "speed"]
    for repair, title in zip(REPAIRS, titles):
        start = accuracy("dense", 0, 1, repair)
        expected = [start, *(accuracy("neuron", s, 1, repair) for s in LEVELS)]
        np.testing.assert_allclose(curve(drawn[title], "neuron").get_ydata(), expected)
        assert drawn[title].get_ylim() == (0, 1.02)
        assert drawn[title].get_xlim() == drawn["as pruned"].get_xlim()
    np.testing.assert_allclose(curve(drawn["speed"], "neuron").get_ydata(), [1, 2, 4, 8])
    drawn["speed"].figure.draw_without_rendering()
    assert labels(drawn["speed"].yaxis) == ["1x", "2x", "5x"]


def test_the_ladder_draws_every_repair_of_weights_and_neurons_by_live_weights_on_the_same_axes():
    weights, neurons = draw_ladder(make_curves(repairs=REPAIRS)).axes
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
    for ax in [*drawn.values(), *draw_accuracy(make_curves(methods=[method])).axes]:
        assert curve(ax, method)
    [ladder] = draw_ladder(make_curves(repairs=repairs, methods=[method])).axes
    drawn = {line.get_label() for line in ladder.lines}
    assert {name for name in REPAIRS if STYLES[name]["label"] in drawn} == set(repairs)


@pytest.mark.parametrize("levels", [(0.25, 0.3), (0.5, 0.9999, 1), (1,)])
def test_every_axis_is_labelled_with_plain_numbers(levels):
    curves = make_curves(levels=levels)
    figures = (draw_accuracy(curves), draw_analysis(curves), draw_ladder(curves))
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


def test_every_live_network_is_within_the_axes_of_both_panels_of_the_ladder():
    tables = [make_rows(methods=["weight"]), make_rows(methods=["neuron"], levels=(0.5, 0.99))]
    tables[1].loc[tables[1]["sparsity"] == 0.99, "live_fraction"] = 0.0005
    for ax in draw_ladder(curves_of(joined(tables))).axes:
        assert min(ax.get_xlim()) < 0.0005


# -------------------------------------------------------------------------------- missing seeds


def test_a_method_of_some_seeds_starts_from_the_dense_networks_of_its_own_seeds():
    tables = [make_rows(methods=["weight"]), make_rows(methods=["neuron"], seeds=[2])]
    figure = draw_accuracy(curves_of(joined(tables)))
    lines = {method: curve(figure.axes[1], method) for method in ("weight", "neuron")}
    assert lines["weight"].get_ydata()[0] == pytest.approx(accuracy("dense", 0, 1))
    assert lines["neuron"].get_ydata()[0] == pytest.approx(accuracy("dense", 0, 2))
    assert "seeds per curve: 1 to 3." in figure.get_supxlabel().replace("\n", " ")


def test_a_level_that_some_seeds_lack_makes_no_bump_but_is_seen():
    tables = [
        make_rows(methods=["weight"]),
        make_rows(methods=["weight"], levels=(0.8,), seeds=[2]),
    ]
    _, whole = draw_accuracy(curves_of(joined(tables))).axes
    np.testing.assert_allclose(curve(whole, "weight").get_xdata(), [1, 0.5, 0.1, 0.01])
    single = [line for line in whole.lines if len(line.get_xdata()) == 5]
    assert len(single) == 1 and single[0].get_linewidth() == 0.5


def test_where_seeds_share_no_level_the_mean_is_of_those_that_have_it():
    tables = [make_rows(levels=(0.5,), seeds=[0]), make_rows(levels=(0.9,), seeds=[1])]
    _, whole = draw_accuracy(curves_of(pandas.concat(tables))).axes
    np.testing.assert_allclose(curve(whole, "weight").get_xdata(), [1, 0.5, 0.1])


@pytest.mark.parametrize("draw", [draw_accuracy, draw_ladder, draw_analysis])
def test_no_text_runs_off_a_figure_even_of_a_deep_network(draw):
    deep = "-".join(["784"] + ["1000"] * 40 + ["10"])
    device = "CPU, " + "a processor with a long name " * 3
    figure = draw(make_curves(hidden_units=deep, device=device, repairs=REPAIRS))
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    for text in figure.texts + [ax.title for ax in figure.axes] + figure.legends:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text


def test_title_and_caption_come_from_the_csv():
    figure = draw_accuracy(make_curves(epochs=7))
    [legend] = figure.legends
    assert legend.get_title().get_text() == "Fashion-MNIST: accuracy after one-shot pruning"
    caption = figure.get_supxlabel().replace("\n", " ")
    for part in (
        "units: 50",
        "epochs of Adam: 7",
        "0.001",
        "128",
        "seeds per curve: 3",
        "CPU, test",
    ):
        assert part in caption
    assert "Images to refit on: 1000; epochs of retraining: 2." in caption
    assert caption.endswith("script 000000ff.")
    [legend] = draw_accuracy(make_curves(dataset="digits")).legends
    assert legend.get_title().get_text().startswith("digits: ")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["\u624b\u66f8", "$x^$"])
def test_figures_do_not_depend_on_the_order_of_the_rows_nor_fail_for_a_name(tmp_path, name):
    rows = make_rows(repairs=REPAIRS, dataset=name)
    pictures = []
    for seed in range(2):
        (tmp_path / "runs").mkdir(exist_ok=True)
        rows.sample(frac=1, random_state=seed).to_csv(tmp_path / "runs" / "a.csv", index=False)
        draw_figures(tmp_path, name)
        pictures.append([path.read_bytes() for path in sorted(tmp_path.glob("*.png"))])
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3


def test_no_data_set_has_files_of_another():
    """As of one called a-ladder beside one called a."""
    names = ["a", *(f"a-{kind}" for kind in FIGURES)]
    files = [f"{name}-{kind}.png" for name in names for kind in FIGURES]
    assert len({*files, *(f"{name}.csv" for name in names)}) == len(files) + len(names)

"""Plots: each holds what it should, and survives odd names and odd data."""

from __future__ import annotations

import csv
import itertools
import sys
import warnings
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from cvtrain.report.curves import read_columns
from cvtrain.report.figure import safe
from cvtrain.report.plots import (
    plot_confusion,
    plot_curves,
    plot_details,
    plot_labels,
    plot_pr,
    plot_predictions,
    plot_reliability,
)
from cvtrain.structures import ImageInfo, Prediction, Target


@pytest.fixture(autouse=True)
def no_warnings():
    """A plot that warns (a missing glyph, a layout that does not fit) fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def write_csv(path, rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def history(epochs, every=1):
    for e in range(epochs):
        row = {
            "epoch": e,
            "train/loss": 10 / (e + 1),
            "train/coord": 1000 * 0.7**e,
            "train/size": 900 * 0.7**e,
            "lr": 0.1,
            "seconds": 3.0,
            "train/num_lost": e % 2,
        }
        if e % every == every - 1:
            row |= {
                "val/loss": 11 / (e + 1),
                "val/coord": 1100 * 0.7**e,
                "val/size": 900 * 0.7**e,
                "val/mAP50": e / (epochs + 1),
                "val/mAP_small": float("nan"),
                "val/AR100": 0.3,
            }
        yield row


def panels(figure):
    return {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_title(loc="left")}


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_curves(tmp_path, figures, look):
    path = plot_curves(write_csv(tmp_path / "m.csv", list(history(30))), tmp_path / "p" / "c.png")
    assert path == tmp_path / "p" / "c.png"
    assert look(path).ink > 0.01
    found = panels(figures[0])
    assert list(found) == [
        "Loss", "Loss terms", "Metrics", "More metrics", "Counts", "Learning rate"
    ]  # fmt: skip
    assert labels_of(found["Loss"]) == ["train/loss", "val/loss"]
    assert labels_of(found["Loss terms"]) == [
        "train/coord", "train/size", "val/coord", "val/size"
    ]  # fmt: skip
    assert found["Loss terms"].get_yscale() == "log"
    assert labels_of(found["Metrics"]) == ["val/mAP50"]
    assert labels_of(found["More metrics"]) == ["val/AR100"]  # mAP_small is never defined
    line = found["Loss"].get_lines()[0]
    assert np.allclose(line.get_ydata(), 10 / np.arange(1, 31))
    assert list(line.get_xdata()) == list(range(1, 31))  # as people count


def test_curves_with_gaps_and_with_one_epoch(tmp_path, figures):
    plot_curves(write_csv(tmp_path / "m.csv", list(history(12, every=5))), tmp_path / "c.png")
    line = panels(figures[0])["Metrics"].get_lines()[0]
    assert list(line.get_xdata()) == [5, 10]
    assert line.get_marker() == "o"
    plot_curves(write_csv(tmp_path / "m.csv", list(history(1))), tmp_path / "c.png")
    ax = panels(figures[1])["Loss"]
    assert [t for t in ax.get_xticks() if ax.get_xlim()[0] <= t <= ax.get_xlim()[1]] == [1]
    assert len(ax.get_lines()) == 2


def test_curves_of_a_run_without_epochs(tmp_path, figures, look):
    path = write_csv(tmp_path / "m.csv", [{"epoch": "epoch"}])
    path.write_text("epoch,train/loss\n")
    assert look(plot_curves(path, tmp_path / "c.png")).ink > 0
    assert list(panels(figures[0])) == ["No epoch has finished yet"]
    path.write_text("")
    plot_curves(path, tmp_path / "c.png")


def test_read_columns(tmp_path):
    (tmp_path / "m.csv").write_text("epoch,a,b\n0,1,\n1,nan,x\n2,inf\n")
    columns = read_columns(tmp_path / "m.csv")
    assert columns["epoch"].tolist() == [0, 1, 2]
    assert columns["a"][0] == 1
    assert np.isnan(columns["a"][1])
    assert np.isnan(columns["b"]).all()


@pytest.mark.parametrize("k", [1, 2, 8])
def test_pr_names_few_classes(tmp_path, k, figures, look, detection_details):
    details = detection_details(tuple(f"kind {n}" for n in range(k)))
    shown = look(plot_pr(details, tmp_path / "pr.png"))
    assert shown.ink > 0.01
    ax = figures[0].axes[0]
    texts = labels_of(ax)
    assert len(texts) == (1 if k == 1 else k + 1)
    best = max(details["per_class"], key=lambda row: row["AP50"])
    assert texts[0] == f"{best['name']}  {best['AP50']:.3f}"
    if k > 1:
        value = np.mean([row["AP50"] for row in details["per_class"]])
        assert texts[-1] == f"mean of {k} classes  {value:.3f}"


def test_pr_of_many_classes(tmp_path, figures, detection_details):
    details = detection_details(tuple(f"kind {n}" for n in range(80)), absent=4, images=120)
    plot_pr(details, tmp_path / "pr.png")
    ax = figures[0].axes[0]
    texts = labels_of(ax)
    assert texts[0] == "70 other classes"
    assert len(texts) == 1 + 6 + 1
    assert "mean of 76 classes" in texts[-1]
    assert len(ax.get_lines()) == 70 + 1 + 6 + 1


def test_pr_without_ground_truth_says_so(tmp_path, figures, detection_details):
    plot_pr(detection_details(("a", "b"), absent=2), tmp_path / "pr.png")
    assert [t.get_text() for t in figures[0].axes[0].texts] == ["no ground truth"]


@pytest.mark.parametrize("k", [2, 10, 20, 100, pytest.param(300, marks=pytest.mark.slow)])
def test_confusion_is_readable_at_any_size(tmp_path, k, figures, look, classification_details):
    details = classification_details(tuple(f"category {n:03}" for n in range(k)))
    shown = look(plot_confusion(details, tmp_path / "c.png"))
    assert 300 < shown.width < 2600
    assert 300 < shown.height < 2600
    ax = figures[0].axes[0]
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names[0] == "category 000"
    assert len(names) == (k if k <= 120 else k / 3)
    extents = [t.get_window_extent() for t in ax.get_yticklabels()]
    gaps = [a.y0 - b.y1 for a, b in itertools.pairwise(extents)]
    assert min(gaps) > -2.5, "tick labels overlap"
    if k <= 20:
        counts = details["confusion"]
        share = counts / counts.sum(axis=1, keepdims=True)
        assert len(ax.texts) == (counts > 0).sum()
        for cell in ax.texts:
            column, row = cell.get_position()
            count, percent = cell.get_text().split("\n")
            assert int(count) == counts[row, column]
            assert float(percent.strip("<%")) / 100 == pytest.approx(share[row, column], abs=0.0051)
    else:
        assert not ax.texts


def test_confusion_of_a_detector_has_a_background(tmp_path, figures, detection_details):
    plot_confusion(detection_details(("cat", "dog")), tmp_path / "c.png")
    ax = figures[0].axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["cat", "dog", "background"]
    assert ax.get_title(loc="left") == "Confusion matrix\nscore 0.25 or more, IoU 0.5 or more"


def test_confusion_of_nothing(tmp_path, look, detection_details):
    details = detection_details(("cat", "dog"), images=0)
    assert look(plot_confusion(details, tmp_path / "c.png")).ink > 0


def test_reliability(tmp_path, figures, look, classification_details):
    details = classification_details(tuple("abcd"), images=500)
    assert look(plot_reliability(details, tmp_path / "r.png")).ink > 0.05
    upper, lower = figures[0].axes
    ece = details["metrics"].compute()["ece"]
    assert upper.get_title(loc="left") == f"Calibration: expected error {ece:.3f}"
    assert sum(bar.get_height() for bar in lower.patches) == 500


def test_details_draw_what_is_there(tmp_path, detection_details, classification_details):
    plots = plot_details(detection_details(("a", "b")), tmp_path / "d")
    assert [p.name for p in plots] == ["pr.png", "confusion.png"]
    plots = plot_details(classification_details(("a", "b")), tmp_path / "c")
    assert [p.name for p in plots] == ["confusion.png", "reliability.png"]
    assert all(p.exists() for p in plots)
    assert plot_details({"per_class": [], "notes": []}, tmp_path) == []


def test_labels_of_boxes(tmp_path, figures, look, make_table):
    table = make_table(tuple(f"kind {n}" for n in range(5)))
    shown = look(plot_labels(table, tmp_path / "l.png", "train: 40 images"))
    assert shown.ink > 0.1
    figure = figures[0]
    assert figure.get_suptitle() == "train: 40 images"
    found = panels(figure)
    assert f"Objects per class: {table.num_annotations} in 5 of 5" in found
    counts = np.bincount(table.labels, minlength=5)
    bars = next(ax for title, ax in found.items() if title.startswith("Objects per class")).patches
    assert [bar.get_width() for bar in bars] == sorted(counts, reverse=True)
    centers = found["Box centers"].get_images()[0].get_array()
    assert centers.sum() == table.num_annotations
    sizes = found["Box sizes"].get_images()[0].get_array()
    assert sizes.sum() == table.num_annotations
    per_image = np.diff(table.starts)
    histogram = found[f"Objects per image: mean {per_image.mean():.1f}, most {per_image.max()}"]
    heights = [bar.get_height() for bar in histogram.patches]
    assert heights == np.bincount(per_image).tolist()


def test_labels_of_many_classes_and_of_images(tmp_path, figures, make_table):
    names = tuple(f"kind {n}" for n in range(80))
    plot_labels(make_table(names, images=200), tmp_path / "l.png")
    bars = next(
        ax for ax in figures[0].axes if ax.get_title(loc="left").startswith("Objects per c")
    )
    assert len(bars.patches) == 30
    assert bars.get_xlabel().startswith("50 more classes with ")
    plot_labels(make_table(("cat", "dog"), boxes=False, labels=True), tmp_path / "l.png")
    assert "Images per class: 40 in 2 of 2" in panels(figures[1])


@pytest.mark.parametrize("images", [0, 3])
def test_labels_of_nothing(tmp_path, look, make_table, images):
    table = make_table(("a",), images=images, boxes=False)
    assert look(plot_labels(table, tmp_path / "l.png")).ink > 0


def test_labels_of_masks_leave_no_half_blank(tmp_path, figures, make_table):
    plot_labels(make_table(("a",), boxes=False), tmp_path / "l.png")
    (axes,) = figures[0].axes
    assert axes.get_title(loc="left").startswith("Image size")
    assert axes.get_position().width > 0.7


def test_odd_names_in_every_plot(
    tmp_path, odd_names, detection_details, classification_details, make_table, look
):
    paths = plot_details(detection_details(odd_names), tmp_path / "d")
    paths += plot_details(classification_details(odd_names), tmp_path / "c")
    paths.append(plot_labels(make_table(odd_names), tmp_path / "l.png", "\udcff $ \n"))
    for path in paths:
        assert look(path).ink > 0.01


def test_safe():
    assert safe("plain") == "plain"
    assert safe("a\nb\x00\udcff") == "a\\nb\\x00\\udcff"  # as in the terminal
    cut = safe("the beginning and the end of a name", 20)
    assert len(cut) == 20
    assert cut == "the beginnin\u2026 a name"


@pytest.fixture
def fake_draw(monkeypatch):
    """Stands for report.draw: remembers what it was asked to draw, and whitens the boxes."""
    calls = []

    def draw(
        image,
        boxes,
        labels,
        names,
        scores=None,
        masks=None,
        mask=None,
        ignore=None,
        max_side=None,
        listed=(),
        frame=None,
        crowded=None,
    ):
        call = {"boxes": boxes, "labels": labels, "names": names, "scores": scores}
        call |= {"frame": frame, "crowded": crowded, "listed": listed}
        calls.append(SimpleNamespace(**call, masks=masks, mask=mask, ignore=ignore))
        shown = image.copy()
        boxes = np.zeros((0, 4)) if boxes is None else boxes
        for x1, y1, x2, y2 in boxes.round().astype(int):
            shown[y1:y2, x1:x2] = 255
        return shown

    module = ModuleType("cvtrain.report.draw")
    module.draw = draw
    module.is_crowd = lambda frame, boxes, *_, **__: len(boxes) > 1
    monkeypatch.setitem(sys.modules, "cvtrain.report.draw", module)
    return calls


def image_of(seed, height=60, width=80):
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)


def test_predictions_beside_truth(tmp_path, figures, fake_draw, look):
    boxes = torch.tensor([[5.0, 5, 30, 30], [40, 10, 70, 50]])
    truth = Target(boxes=boxes, labels=torch.tensor([0, 1]), ignore=torch.tensor([False, True]))
    found = Prediction(boxes=boxes, scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([1, 0]))
    infos = [ImageInfo(i, f"a/{i}.jpg", f"a/{i}.jpg", 60, 80) for i in range(3)]
    path = plot_predictions(
        [image_of(i) for i in range(3)],
        [found] * 3,
        [truth] * 3,
        ["cat", "dog"],
        tmp_path / "p.png",
        infos=infos,
    )
    assert look(path).ink > 0.3
    assert len(fake_draw) == 6
    true, found = fake_draw[:2]
    assert [true.names[k] for k in true.labels] == ["cat", "dog"]
    assert true.ignore.tolist() == [False, True]
    assert true.scores is None
    assert found.boxes.tolist() == [[5, 5, 30, 30]]  # the other one's score is too low
    assert [found.names[k] for k in found.labels] == ["dog"]
    assert found.scores.tolist() == [pytest.approx(0.9)]
    assert found.ignore is None
    titles = [ax.get_title(loc="left") for ax in figures[0].axes]
    assert titles[:2] == ["a/0.jpg\nground truth", "\nprediction: 1 of score 0.25 or more"]
    assert len(titles) == 8  # two pairs a row, the last one empty
    shown = figures[0].axes[0].get_images()[0].get_array()
    assert (shown[10, 10] == 255).all()


def test_predictions_of_a_classifier(tmp_path, figures):
    probs = torch.tensor([0.2, 0.8])
    plot_predictions(
        [image_of(0), image_of(1), image_of(2)],
        [Prediction(probs=probs), Prediction(probs=probs), Prediction()],
        [Target(label=torch.tensor(1)), Target(label=torch.tensor(0)), Target()],
        ["cat", "dog"],
        tmp_path / "p.png",
    )
    captions = [t for t in figures[0].findobj(Text) if t.get_text().startswith("image")]
    assert {t.get_text(): t.get_color() for t in captions} == {
        "image 0\ndog 0.80": "#009E73",
        "image 1\ndog 0.80, ground truth cat": "#D55E00",
        "image 2\nno prediction": "#6b7280",
    }
    assert len(figures[0].axes) == 3


def test_predictions_of_any_number_of_classes(tmp_path, figures):
    """Green and without the truth where all are right."""
    names = ["cat", "dog", "emu"]
    probs = [[0.9, 0.2, 0.7], [0.9, 0.2, 0.1], [0.1, 0.2, 0.3]]
    truths = [[1.0, 0, 1], [0, 1, 0], [0, 0, 0]]
    plot_predictions(
        [np.zeros((32, 32, 3), np.uint8)] * 3,
        [Prediction(probs=torch.tensor(p)) for p in probs],
        [Target(probs=torch.tensor(t)) for t in truths],
        names,
        tmp_path / "p.png",
    )
    titles = [ax.get_title(loc="left") for ax in figures[0].axes]
    assert titles == [
        "image 0\ncat 0.90, emu 0.70",
        "image 1\ncat 0.90\nground truth: dog",
        "image 2\nnothing",
    ]


def test_pr_of_whole_images(tmp_path, figures):
    curves = {"recall": np.array([0.5, 1]), "precision": np.array([[1, 0.6], [np.nan, np.nan]])}
    curves["ap"] = np.array([0.75, np.nan])
    details = {"pr_curves": curves, "per_class": [{"name": "cat"}, {"name": "dog"}]}
    plot_pr(details, tmp_path / "pr.png")
    (ax,) = figures[0].axes
    assert ax.get_title(loc="left") == "Precision and recall"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["cat  0.750"]
    assert ax.get_legend().get_title().get_text() == "class  AP"


def test_labels_of_any_number_of_classes(tmp_path, figures, make_table):
    from dataclasses import replace

    table = make_table(("cat", "dog"), images=3)
    table = replace(table, tags=np.array([0, 1, 1]), tag_starts=np.array([0, 2, 3, 3]))
    plot_labels(table, tmp_path / "l.png")
    titles = [ax.get_title(loc="left") for ax in figures[0].axes]
    assert titles[0] == "Images per class: 1.0 classes per image, most 2"
    assert "Box centers" not in titles


def test_predictions_of_a_localizer(tmp_path, figures, fake_draw):
    """One box, no labels of its own: the class of the image names it."""
    box = torch.tensor([[10.0, 10, 40, 40]])
    plot_predictions(
        [image_of(0)],
        [Prediction(boxes=box + 2, probs=torch.tensor([0.9, 0.1]))],
        [Target(boxes=box, label=torch.tensor(1))],
        ["cat", "dog"],
        tmp_path / "p.png",
    )
    assert [call.labels.tolist() for call in fake_draw] == [[1], [0]]
    titles = [ax.get_title(loc="left") for ax in figures[0].axes]
    assert titles == [
        "image 0\nground truth: dog",
        "\nprediction: cat 0.90, IoU 0.77, ground truth dog",
    ]


def test_predictions_of_masks(tmp_path, fake_draw):
    mask = torch.zeros(60, 80, dtype=torch.int64)
    plot_predictions(
        [image_of(0)],
        [Prediction(mask=mask + 1)],
        [Target(mask=mask)],
        ["a", "b"],
        tmp_path / "p.png",
    )
    assert [int(call.mask.max()) for call in fake_draw] == [0, 1]
    masks = torch.ones(2, 60, 80, dtype=torch.bool)
    boxes = torch.tensor([[0.0, 0, 80, 60]] * 2)
    both = {"boxes": boxes, "labels": torch.tensor([0, 1])}
    rles = [{"size": [60, 80], "counts": text} for text in "ab"]
    message = Prediction(scores=torch.tensor([0.9, 0.1]), rles=rles, **both)
    for truth in (Target(masks=masks, **both), Target(rles=rles, **both)):
        plot_predictions([image_of(0)], [message], [truth], ["a", "b"], tmp_path / "p.png")
    assert torch.equal(torch.from_numpy(fake_draw[2].masks), masks)
    assert fake_draw[4].masks == rles
    assert fake_draw[3].masks == fake_draw[5].masks == rles[:1]


@pytest.mark.parametrize("side", [60, 64])
def test_file_names_above_masks_are_not_cut_off(tmp_path, figures, side):
    mask = torch.zeros(64, side, dtype=torch.int64)
    infos = [ImageInfo(i, f"{i}", f"images/val/{i}.png", 64, side) for i in range(2)]
    images = [np.zeros((64, side, 3), np.uint8)] * 2
    message, true = [Prediction(mask=mask)] * 2, [Target(mask=mask + 1)] * 2
    plot_predictions(images, message, true, ["a", "b"], tmp_path / "p.png", infos=infos)
    (figure,) = figures
    for ax in figure.axes:
        for part in (ax._left_title, ax.title):
            assert part.get_window_extent().y1 <= figure.bbox.y1


def test_predictions_need_as_many_of_each(tmp_path):
    with pytest.raises(ValueError, match="1 images, 0 predictions, 0 ground truths"):
        plot_predictions([image_of(0)], [], [], ["a"], tmp_path / "p.png")
    with pytest.raises(ValueError, match="0 images"):
        plot_predictions([], [], [], ["a"], tmp_path / "p.png")


def test_predictions_with_the_real_drawing(tmp_path, look):
    """No fake here: the two modules fit together."""
    boxes = torch.tensor([[5.0, 5, 60, 60], [70, 10, 120, 100]])
    image = np.full((120, 160, 3), 90, np.uint8)
    found = Prediction(boxes=boxes, scores=torch.tensor([0.9, 0.4]), labels=torch.tensor([1, 0]))
    none = Prediction(boxes=boxes[:0], scores=torch.zeros(0), labels=torch.zeros(0).long())
    nothing = Target(boxes=boxes[:0], labels=torch.zeros(0).long())
    plain = look(plot_predictions([image], [none], [nothing], ["a", "日"], tmp_path / "p.png"))
    truth = Target(boxes=boxes, labels=torch.tensor([0, 1]))
    drawn = look(plot_predictions([image], [found], [truth], ["a", "日"], tmp_path / "p.png"))
    assert drawn.colors > plain.colors


def test_the_iou_curve_of_a_localizer(figures, tmp_path):
    details = {
        "iou_curve": {
            "threshold": np.arange(101) / 100,
            "box": np.linspace(1, 0, 101),
            "both": np.linspace(0.8, 0, 101),
        }
    }
    assert plot_details(details, tmp_path) == [tmp_path / "iou.png"]
    (ax,) = figures[0].axes
    assert [line.get_label() for line in ax.lines[:2]] == ["class and box", "box only"]
    assert [t.get_text() for t in ax.texts] == ["localization accuracy 0.400"]
    empty = {key: np.full(101, np.nan) for key in ("box", "both")}
    plot_details({"iou_curve": {**details["iou_curve"], **empty}}, tmp_path)
    assert [t.get_text() for t in figures[1].axes[0].texts] == ["no image"]


def test_of_guesses_at_one_object_the_best_is_drawn(figures, tmp_path):
    boxes = torch.tensor([[5.0, 5.0, 20.0, 20.0], [30.0, 30.0, 40.0, 40.0]])
    prediction = Prediction(
        boxes=boxes,
        scores=torch.tensor([0.1, 0.05]),
        labels=torch.tensor([1, 0]),
        probs=torch.tensor([0.6, 0.4]),
    )
    truth = Target(boxes=boxes[1:], label=torch.tensor(1))
    image = np.zeros((50, 60, 3), np.uint8)
    plot_predictions([image], [prediction], [truth], ["cat", "dog"], tmp_path / "p.png")
    message = figures[0].axes[1].get_title(loc="left")
    assert message == "\nprediction: dog 0.10, IoU 0.00", "the class of the best guess"


def test_a_single_loss_term_is_not_drawn_twice(tmp_path, figures):
    rows = [{"epoch": 0, "train/loss": 1.0, "train/class": 1.0, "val/loss": 2, "val/class": 2}]
    plot_curves(write_csv(tmp_path / "m.csv", rows), tmp_path / "c.png")
    assert list(panels(figures[0])) == ["Loss"]


def test_pairs_are_drawn_alike(tmp_path, fake_draw, figures):
    """One box of truth, two predicted: both get a legend; both are drawn in the file's frame."""
    boxes = torch.tensor([[5.0, 5, 30, 30], [40, 5, 60, 20]])
    truth = Target(boxes=boxes[:1], labels=torch.tensor([0]))
    message = Prediction(boxes=boxes, scores=torch.tensor([0.9, 0.8]), labels=torch.tensor([1, 0]))
    info = ImageInfo(0, "a.jpg", "a.jpg", 300, 100)
    plot_predictions(
        [image_of(0)], [message], [truth], ["cat", "dog"], tmp_path / "p", infos=[info]
    )
    assert [call.crowded for call in fake_draw] == [True, True]
    assert [call.frame for call in fake_draw] == [(300, 100)] * 2
    assert [call.listed for call in fake_draw] == [[0, 1]] * 2


def test_a_class_alone_is_shown_in_the_aspect_of_its_file(tmp_path, figures):
    message, info = Prediction(probs=torch.tensor([0.2, 0.8])), ImageInfo(0, "a", "a", 50, 200)
    square = np.zeros((32, 32, 3), np.uint8)
    plot_predictions([square], [message], [Target()], ["cat", "dog"], tmp_path / "p", infos=[info])
    (ax,) = figures[0].axes
    assert ax.get_aspect() == pytest.approx(0.25)


def test_a_class_that_begins_with_an_underscore_is_in_the_legend(
    tmp_path, figures, detection_details
):
    details = detection_details(("_x_", "a$b$"))
    plot_pr(details, tmp_path / "pr.png")
    texts = labels_of(figures[0].axes[0])
    assert sum("_x_" in text for text in texts) == 1
    assert sum("a$b$" in text for text in texts) == 1


def test_large_counts_are_short():
    from cvtrain.report.plots import _short_count

    counts = (0, 7, 9999, 12345, 3_400_000, 2.5e9)
    assert [_short_count(c) for c in counts] == ["0", "7", "9999", "12.3k", "3.4M", "2.5G"]

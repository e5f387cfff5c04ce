"""The PNG plots of a run. Each function writes one file and returns its path.

``plot_curves`` (metrics.csv) and ``plot_labels`` (a table) live in files of their own and are
offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from torch import Tensor

from cvtrain.metrics.box_overlap import box_ious
from cvtrain.metrics.localization import IOU_THRESHOLD
from cvtrain.report.class_iou import plot_class_iou
from cvtrain.report.curves import plot_curves
from cvtrain.report.figure import COLORS, DPI, GRID, INK, MUTED, entry, new_figure, safe
from cvtrain.report.iou_curve import plot_iou_curve
from cvtrain.report.labels import plot_labels
from cvtrain.structures import ImageInfo, Prediction, Target

__all__ = [
    "plot_class_iou",
    "plot_confusion",
    "plot_curves",
    "plot_details",
    "plot_iou_curve",
    "plot_labels",
    "plot_pr",
    "plot_predictions",
    "plot_reliability",
]

CELL_PIXELS = 480
"""The width of one image in the sheet of predictions."""

MAX_NAMED = 8
"""Classes with a colored curve of their own."""


def plot_details(details: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Draw whatever ``Metrics.details()`` holds that has a plot; returns the files.

    ``pr_curves`` -> pr.png, ``confusion`` -> confusion.png, ``reliability`` -> reliability.png,
    ``iou_curve`` -> iou.png, ``class_iou`` -> class_iou.png.

    Raises:
        RunError: a file cannot be written.
    """
    plots = {
        "pr_curves": ("pr.png", plot_pr),
        "confusion": ("confusion.png", plot_confusion),
        "reliability": ("reliability.png", plot_reliability),
        "iou_curve": ("iou.png", plot_iou_curve),
        "class_iou": ("class_iou.png", plot_class_iou),
    }
    folder = Path(folder)
    return [draw(details, folder / name) for key, (name, draw) in plots.items() if key in details]


def plot_pr(details: Mapping[str, Any], path: str | Path) -> Path:
    """Precision over recall (of detections at IoU 0.5), a curve a class and their mean.

    Up to 8 classes are named; of more, the three best and the three worst.

    Raises:
        RunError: the file cannot be written.
    """
    curves = details["pr_curves"]
    recall, precision = curves["recall"], curves["precision"]  # (R,), (K, R)
    names = [row["name"] for row in details["per_class"]]
    defined = np.flatnonzero(~np.isnan(precision).all(axis=1))
    scores = curves.get("ap", precision.mean(axis=1))  # the AP of each class
    at = f" at IoU {curves['iou']:g}" if "iou" in curves else ""
    at = f" of {curves['of']}{at}" if "of" in curves else at
    ranked = defined[np.argsort(-scores[defined], kind="stable")]
    few = len(ranked) <= MAX_NAMED
    named = ranked if few else np.concatenate([ranked[:3], ranked[-3:]])
    with new_figure(path, 8.2, 4.8) as figure:
        ax = figure.subplots()
        ax.set_title(f"Precision and recall{at}")
        ax.set_xlabel("recall")
        ax.set_ylabel("precision")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        if not len(ranked):
            ax.text(0.5, 0.5, "no ground truth", ha="center", va="center", color=MUTED)
            return Path(path)
        for k in [] if few else ranked[3:-3]:
            ax.plot(recall, precision[k], color=MUTED, linewidth=0.5, alpha=0.5)
        if not few:
            hidden = f"{len(ranked) - len(named)} other classes"
            ax.plot([], [], color=MUTED, linewidth=0.5, label=hidden)
        for n, k in enumerate(named):
            label = f"{safe(names[k], 24)}  {scores[k]:.3f}"
            ax.plot(recall, precision[k], color=COLORS[n % len(COLORS)], label=entry(label))
        if len(ranked) > 1:
            mean = precision[defined].mean(axis=0)
            label = f"mean of {len(ranked)} classes  {scores[defined].mean():.3f}"
            ax.plot(recall, mean, color=INK, linewidth=2.8, label=label)
        ax.legend(
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            title=f"class  AP{'50' if at else ''}",
            fontsize=8,
        )
    return Path(path)


def plot_confusion(details: Mapping[str, Any], path: str | Path) -> Path:
    """The confusion matrix, colored by each row's (a true class's) shares.

    Up to 20 classes a cell carries its count and its share; ticks shrink, and beyond 120 classes
    thin out.

    Raises:
        RunError: the file cannot be written.
    """
    counts = np.asarray(details["confusion"], np.float64)  # (n, n)
    names = [safe(name, 20) for name in details["confusion_labels"]]
    n = len(names)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    side = float(np.clip(1.2 + 0.46 * n, 3.2, 15))
    margin = 0.075 * max(len(name) for name in names)
    tick_size = float(np.clip(72 * side / n * 0.62, 4.5, 9))
    with new_figure(path, side + margin + 1.0, side + margin + 0.2) as figure:
        ax = figure.subplots()
        # Many classes carry no numbers: a root scale keeps a confusion of 1 % visible there.
        norm = PowerNorm(1.0 if n <= 20 else 0.5, vmin=0, vmax=1)
        image = ax.imshow(np.ma.masked_invalid(share), cmap="Blues", norm=norm)
        ax.set_facecolor(GRID)  # a row without ground truth
        ax.grid(visible=False)
        every = math.ceil(n / 120)
        ticks = np.arange(0, n, every)
        labels = [names[t] for t in ticks]
        ax.set_xticks(ticks, labels, rotation=90, fontsize=tick_size)
        ax.set_yticks(ticks, labels, fontsize=tick_size)
        ax.tick_params(length=0)
        ax.set_xlabel("predicted")
        ax.set_ylabel("ground truth")
        ax.set_title(_confusion_title(details))
        if n <= 20:
            _write_cells(ax, counts, share)
        bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.02)
        bar.set_label("share of the row")
        bar.outline.set_visible(False)  # type: ignore[operator]
    return Path(path)


def _confusion_title(details: Mapping[str, Any]) -> str:
    at = details.get("confusion_thresholds")
    title = "Confusion matrix"
    return f"{title}\nscore {at['score']:g} or more, IoU {at['iou']:g} or more" if at else title


def _write_cells(ax: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    """The count and the percentage of the row, of cells that are not empty."""
    for row, column in zip(*np.nonzero(counts), strict=True):
        value = share[row, column]
        color = "white" if value > 0.55 else INK
        percent = f"{value:.0%}" if value >= 0.005 else "<1%"
        text = f"{_short_count(counts[row, column])}\n{percent}"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def _short_count(count: float) -> str:
    """Four digits as they are, more of them (pixels) as ``12k`` or ``3.4M``."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= max(scale, 1e4):
            return f"{count / scale:.3g}{unit}"
    return f"{count:.0f}"


def plot_reliability(details: Mapping[str, Any], path: str | Path) -> Path:
    """Accuracy over confidence in 15 bins, and how many images fall into each.

    Guo et al. 2017, arXiv 1706.04599, figure 1. Bars below the diagonal: too sure of itself.

    Raises:
        RunError: the file cannot be written.
    """
    bins = details["reliability"]
    edges, count = np.asarray(bins["edges"]), np.asarray(bins["count"])
    accuracy, confidence = np.asarray(bins["accuracy"]), np.asarray(bins["confidence"])
    width = np.diff(edges)
    filled = count > 0
    gap = np.nansum(count * np.abs(accuracy - confidence)) / max(1, count.sum())
    with new_figure(path, 5.6, 6.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.set_title(f"Calibration: expected error {gap:.3f}")
        upper.bar(
            edges[:-1][filled], accuracy[filled], width[filled], align="edge",
            color=COLORS[4], edgecolor="white", label="accuracy in the bin",
        )  # fmt: skip
        upper.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect")
        upper.plot(
            confidence[filled], accuracy[filled], color=COLORS[0], marker="o", markersize=4,
            linewidth=1, label="accuracy at mean confidence",
        )  # fmt: skip
        upper.set_ylabel("accuracy")
        upper.set_ylim(0, 1.02)
        upper.legend(loc="upper left", bbox_to_anchor=(0.0, -0.02), ncols=3, fontsize=8)
        lower.bar(edges[:-1], count, width, align="edge", color=COLORS[0], edgecolor="white")
        lower.set_xlim(0, 1)
        lower.set_xlabel("confidence")
        lower.set_ylabel("images")
    return Path(path)


def plot_predictions(
    images: Sequence[np.ndarray],
    predictions: Sequence[Prediction],
    truths: Sequence[Target],
    names: Sequence[str],
    path: str | Path,
    *,
    infos: Sequence[ImageInfo] | None = None,
    said: Sequence[str] | None = None,
    score_threshold: float = 0.25,
) -> Path:
    """Ground truth and prediction side by side, a pair an image; for a bare class, one picture.

    Both of a pair are drawn alike: same size, same lines, a name at each box of both or of none.

    Args:
        images: uint8 ``(H, W, 3)`` RGB, of any size.
        predictions: one an image, in the pixels of the file.
        truths: one an image, likewise.
        names: K class names.
        path: the PNG to write.
        infos: for captions with the file names, and the files' sizes; None: those of ``images``.
        said: what is written above each prediction, behind "prediction: ".
        score_threshold: predicted boxes below it are not drawn.

    Raises:
        RunError: the file cannot be written.
        ValueError: no image, or lists of different lengths.
    """
    count = len(images)
    if not count == len(predictions) == len(truths) or not count:
        raise ValueError(
            f"{count} images, {len(predictions)} predictions, {len(truths)} ground truths"
        )
    frames = [image.shape[:2] for image in images]
    if infos is not None:
        frames = [(info.height, info.width) for info in infos]
    drawn = any(p.boxes is not None or p.mask is not None for p in predictions)
    each = 2 if drawn else 1  # axes an image
    columns = min(4, each * count)
    cell = (CELL_PIXELS if drawn else CELL_PIXELS // 2) / DPI
    rows = math.ceil(each * count / columns)
    shape = float(np.median([height / width for height, width in frames]))
    several = any(truth.probs is not None for truth in truths)  # a line more
    around = 0.65 if several else 0.5
    if any(truth.mask is not None for truth in truths):
        around += 0.4  # the classes below the pictures
    height = rows * (cell * float(np.clip(shape, 0.4, 1.8)) + around)
    with new_figure(path, columns * cell, height) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1, each)  # a row an image
        for ax in axes.ravel():
            ax.set_axis_off()
        pairs = [
            _Pair(*parts, names, score_threshold)
            for parts in zip(images, frames, predictions, truths, strict=True)
        ]
        listed = set[int]().union(*(pair.listed for pair in pairs))  # legends of one height
        for n, pair in enumerate(pairs):
            title = f"image {n}" if infos is None else safe(infos[n].file_name, 48 if drawn else 30)
            if drawn:
                pair.listed = listed
                pair.show_truth(axes[n, 0], title)
                pair.show_prediction(axes[n, 1])
                if said is not None:
                    _caption(axes[n, 1], f"\nprediction: {said[n]}")
            else:
                answer, color = _answer(pair.prediction, pair.truth, names)
                height, width = pair.image.shape[:2]
                axes[n, 0].imshow(pair.image, aspect=frames[n][0] / frames[n][1] * width / height)
                _caption(axes[n, 0], f"{title}\n{answer}", color)
    return Path(path)


def _caption(ax: Axes, text: str, color: str = INK) -> None:
    ax.set_title(text, fontsize=8, weight="normal", color=color)


class _Pair:
    """An image's ground truth and prediction, drawn alike.

    Args:
        image: uint8 ``(H, W, 3)``.
        frame: height and width of the file, in whose pixels the rest is.
        prediction: all of it.
        truth: the ground truth.
        names: of the classes.
        threshold: predicted boxes of a lower score are not drawn.
    """

    def __init__(
        self,
        image: np.ndarray,
        frame: tuple[int, int],
        prediction: Prediction,
        truth: Target,
        names: Sequence[str],
        threshold: float,
    ) -> None:
        self.image, self.frame, self.names, self.threshold = image, frame, names, threshold
        self.prediction, self.truth = prediction, truth
        self.kept = _above(prediction, threshold)
        self.labels = [truth.labels, self.kept.labels]
        if truth.labels is None and truth.label is not None and truth.boxes is not None:
            self.labels[0] = truth.label.expand(len(truth.boxes))  # one object, the image's class
        if (
            self.kept.labels is None
            and prediction.probs is not None
            and self.kept.boxes is not None
        ):
            self.labels[1] = prediction.probs.argmax().expand(len(self.kept.boxes))
        self.listed = _classes(truth.mask) | _classes(prediction.mask)  # all legends alike
        self.listed |= _classes(self.labels[0]) | _classes(self.labels[1])
        self.crowded = self._crowd(truth, 0, ignore=truth.ignore)
        self.crowded |= self._crowd(self.kept, 1, scores=self.kept.scores)

    def show_truth(self, ax: Axes, title: str) -> None:
        what = "ground truth"
        if self.truth.label is not None:
            what = f"{what}: {safe(self.names[int(self.truth.label)], 20)}"
        ax.imshow(self._drawn(self.truth, 0, ignore=self.truth.ignore))
        _caption(ax, f"{title}\n{what}")

    def show_prediction(self, ax: Axes) -> None:
        what, color = "prediction", INK
        prediction = self.prediction
        if prediction.boxes is not None:
            shown = self._drawn(self.kept, 1, scores=self.kept.scores)
            if self.kept.scores is not None and prediction.probs is None:
                what = f"prediction: {len(self.kept.scores)} of score {self.threshold:g} or more"
        else:
            shown = self._drawn(prediction, 1)
        if prediction.probs is not None:
            answer, color = _answer(prediction, self.truth, self.names)
            what = f"prediction: {answer}"
        ax.imshow(shown)
        _caption(ax, f"\n{what}", color)

    def _crowd(
        self, what: Target | Prediction, side: int, scores: Any = None, ignore: Any = None
    ) -> bool:
        from cvtrain.report.draw import is_crowd

        labels = self.labels[side]
        if what.boxes is None or labels is None:
            return False
        return is_crowd(
            self.frame,
            _array(what.boxes),
            _array(labels),
            self._names(),
            _array(scores),
            _array(ignore),
            max_side=CELL_PIXELS,
        )

    def _names(self) -> list[str]:
        return [safe(name, 20) for name in self.names]

    def _drawn(
        self, what: Target | Prediction, side: int, scores: Any = None, ignore: Any = None
    ) -> np.ndarray:
        from cvtrain.report.draw import draw

        return draw(
            self.image,
            _array(what.boxes),
            _array(self.labels[side]),
            self._names(),
            scores=_array(scores),
            masks=what.rles if what.rles is not None else _array(getattr(what, "masks", None)),
            mask=_array(what.mask),
            ignore=_array(ignore),
            max_side=CELL_PIXELS,
            listed=sorted(self.listed),
            frame=self.frame,
            crowded=self.crowded,
        )


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().cpu().numpy()


def _classes(mask: Tensor | None) -> set[int]:
    return set() if mask is None else {int(v) for v in mask.unique()}


def _above(prediction: Prediction, threshold: float) -> Prediction:
    """The boxes of a prediction that score at least ``threshold``, without its other fields.

    Of guesses at one object (boxes with ``probs``) the best alone is kept, whatever it scores.
    """
    names = ("boxes", "scores", "labels", "rles")
    objects = Prediction(**{name: getattr(prediction, name) for name in names})
    if prediction.scores is None:
        return objects
    keep = prediction.scores >= threshold
    if prediction.probs is not None:
        keep[:1], keep[1:] = True, False
    return objects.of(keep)


def _answer(prediction: Prediction, truth: Target, names: Sequence[str]) -> tuple[str, str]:
    """What is said of an image's class, and a color that says whether it is right.

    With one object's box as truth, its IoU with the best guess's box is said too, and must be 0.5.
    """
    if prediction.probs is None:
        return "no prediction", MUTED
    if truth.probs is not None and truth.label is None:
        return _answers(prediction.probs, truth.probs, names)
    best, score = prediction.best()
    message = f"{safe(names[best], 20)} {score:.2f}"
    if truth.label is None:
        return message, INK
    placed = True
    if prediction.boxes is not None and truth.boxes is not None and len(truth.boxes) == 1:
        iou = 0.0
        if len(prediction.boxes):
            pair = (t[:1].detach().cpu().numpy() for t in (prediction.boxes, truth.boxes))
            iou = float(box_ious(*pair)[0, 0])
        message, placed = f"{message}, IoU {iou:.2f}", iou >= IOU_THRESHOLD
    if best == int(truth.label):
        return message, COLORS[2] if placed else COLORS[1]
    return f"{message}, ground truth {safe(names[int(truth.label)], 20)}", COLORS[1]


def _answers(probs: Tensor, truth: Tensor, names: Sequence[str]) -> tuple[str, str]:
    """``_answer`` where an image has any number of classes: two lines where it is wrong."""
    message = [k for k in probs.argsort(descending=True).tolist() if probs[k] >= 0.5]
    shown = ", ".join(f"{safe(names[k], 16)} {float(probs[k]):.2f}" for k in message) or "nothing"
    if len(shown) > 32:
        shown = ", ".join(safe(names[k], 16) for k in message)
    true = (truth >= 0.5).nonzero().flatten().tolist()
    if sorted(message) == true:
        return safe(shown, 34), COLORS[2]
    truly = ", ".join(safe(names[k], 16) for k in true) or "nothing"
    return f"{safe(shown, 34)}\nground truth: {safe(truly, 28)}", COLORS[1]

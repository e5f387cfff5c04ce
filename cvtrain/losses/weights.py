"""Weights that make up for classes with few images, or few pixels.

Papers: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples",
arXiv 1901.05555, equations 2 to 4. Deviation: the paper's weights add up to the number of classes;
ours have mean 1 over the training images, so that the learning rate that suits the unweighted loss
suits the weighted one. Of pixels: Eigen & Fergus, "Predicting Depth, Surface Normals and Semantic
Labels with a Common Multi-Scale Convolutional Architecture", arXiv 1411.4734, section 6.3.2 (median
frequency), as it stands there. Written from the papers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BETA = 0.999
"""Of ``effective``: beyond about 1 / (1 - beta) images, further ones add little."""

KINDS = ("auto", "effective")


class ClassWeighted(nn.Module):
    """A loss of K classes with a weight each.

    The weights are a buffer: a checkpoint brings its own, so that it loads without its data.

    Args:
        class_weights: None: all 1; K numbers from 0 in the order of the classes; or a word that
            ``weigh`` turns into numbers, see ``_counted``: ``auto``, ``effective``.

    Attributes:
        multi_label: whether a class is judged by itself (sigmoids) or against the others (softmax).
        weights: float32 ``(K,)``, or None.

    Raises:
        ValueError: another word, a number below 0, or none above it.
    """

    multi_label = False
    weights: Tensor | None

    def __init__(self, class_weights: str | Sequence[float] | None = None) -> None:
        super().__init__()
        self.class_weights = class_weights
        given = None
        if isinstance(class_weights, str):
            if class_weights not in KINDS:
                raise ValueError(f"class_weights={class_weights}: {', '.join(KINDS)} or numbers")
        elif class_weights is not None:
            given = torch.tensor([float(w) for w in class_weights])
            if not len(given) or not bool(((given >= 0) & given.isfinite()).all()):
                shown = ", ".join(f"{w:g}" for w in given.tolist())
                raise ValueError(f"class_weights=[{shown}]: numbers from 0, one per class")
            if not bool((given > 0).any()):
                raise ValueError(f"class_weights={[*class_weights]}: at least one above 0")
        self.register_buffer("weights", given)

    def weigh(self, counts: Sequence[int], images: int | Sequence[int]) -> None:
        """Fix the weights, before training.

        Args:
            counts: K numbers, the training images of each class, or its pixels.
            images: all training images; with pixels K numbers, the pixels that count of the images
                that have the class.

        Raises:
            ValueError: ``class_weights`` holds another number of weights than there are classes, or
                asks for effective numbers of pixels.
        """
        if isinstance(self.class_weights, str):
            counts = [int(n) for n in counts]
            if isinstance(images, int):
                weights = self._counted(counts, images, self.class_weights)
            elif self.class_weights == "auto":
                weights = median_frequency(counts, [int(n) for n in images])
            else:
                raise ValueError(
                    f"class_weights={self.class_weights} is of images; for pixels there is auto, or"
                    " one number per class"
                )
            self.weights = torch.tensor(weights, dtype=torch.float32)
        elif self.weights is not None and len(self.weights) != len(counts):
            raise ValueError(f"{len(self.weights)} weights for {len(counts)} classes")

    def _counted(self, counts: list[int], images: int, kind: str) -> list[float]:
        """The weights by the counts of images."""
        return balanced_weights(counts, kind)

    def _current(self) -> Tensor | None:
        if self.weights is None and self.class_weights is not None:
            raise ValueError(f"class_weights={self.class_weights} were not counted yet: weigh()")
        return self.weights

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}weights")
        if isinstance(self.class_weights, str) and saved is not None:
            device = None if self.weights is None else self.weights.device
            self.weights = torch.empty_like(saved, device=device)  # counted when it was trained
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def effective_number(n: int, kind: str) -> float:
    """``n`` images as they count: n itself (``auto``), or ``(1 - beta^n) / (1 - beta)``."""
    return float(n) if kind == "auto" else -math.expm1(n * math.log(BETA)) / (1 - BETA)


def balanced_weights(counts: Sequence[int], kind: str = "auto") -> list[float]:
    """Weights of classes that exclude one another; their mean over the images is 1.

    ``auto``: ``N / (K n_c)``, N images, K classes that have any (scikit-learn's "balanced").
    ``effective``: in proportion to ``1 / E(n_c)``, with the effective number E. A class without
    images gets 1.
    """
    each = [1 / effective_number(n, kind) if n else 0.0 for n in counts]
    total = sum(n * w for n, w in zip(counts, each, strict=True))
    return [w * sum(counts) / total if w else 1.0 for w in each]


def median_frequency(pixels: Sequence[int], totals: Sequence[int]) -> list[float]:
    """``median(f) / f_c``, f_c the share of a class in the images that have it.

    Args:
        pixels: K numbers, of each class.
        totals: K numbers, all pixels of the images that have the class, void left out.

    Returns:
        K weights; 1 for a class without pixels, which the median leaves out.
    """
    shares = [n / total if n else 0.0 for n, total in zip(pixels, totals, strict=True)]
    middle = statistics.median([f for f in shares if f]) if any(shares) else 1.0
    return [middle / f if f else 1.0 for f in shares]


def positive_weights(counts: Sequence[int], images: int, kind: str = "auto") -> list[float]:
    """What a positive counts where classes are judged one by one: ``E(N - n_c) / E(n_c)``.

    So positives and negatives of a class count alike. A class that no image has, or every one,
    gets 1.
    """
    return [
        effective_number(images - n, kind) / effective_number(n, kind) if 0 < n < images else 1.0
        for n in counts
    ]

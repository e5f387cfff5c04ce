"""Large-scale jitter (Ghiasi et al. 2021, Simple Copy-Paste, arXiv 2012.07177, section 3).

The image is fitted to the network's input, resized by a factor from a wide range (0.1 to 2.0; the
standard jitter's is 0.8 to 1.25), and cropped or padded to the input's size. Where it is larger a
random part is seen; where it is smaller it lies at a random place, padded on all sides (the paper
says only that it pads).

``of="original"`` resizes the image from its own size instead of the fitted one: the usual training
of semantic segmentation on crops, from 0.5 to 2 (Chen et al. 2017, DeepLab, arXiv 1606.00915).
"""

from __future__ import annotations

from collections.abc import Sequence

from cvtrain.augment.geometry import Box2Box, fit
from cvtrain.augment.transforms import Placing, interval, within
from cvtrain.errors import UsageError


class ScaleJitter(Placing):
    """Resize by a random factor, then crop or pad to the network's input, and mirror.

    Args:
        scale: smallest and largest factor; 1 is the fitted image, or the image at its own size.
        hflip: probability of a left-right mirror.
        vflip: probability of an upside-down mirror.
        of: what the factor is of, ``fitted`` or ``original``.

    Raises:
        UsageError: a range that makes no sense.
    """

    def __init__(
        self,
        scale: Sequence[float] = (0.1, 2.0),
        hflip: float = 0.0,
        vflip: float = 0.0,
        of: str = "fitted",
    ) -> None:
        super().__init__(p=1.0)
        self.scale = interval("ScaleJitter scale", scale)
        within("ScaleJitter hflip", hflip, 0.0, 1.0)
        within("ScaleJitter vflip", vflip, 0.0, 1.0)
        if of not in ("fitted", "original"):
            raise UsageError(f"ScaleJitter of={of}: expected fitted | original")
        self.hflip, self.vflip, self.of = hflip, vflip, of

    def draw(self, height: int, width: int) -> Box2Box:
        out_height, out_width = self.out or (height, width)
        draw = self.py_random
        zoom, down, right = draw.uniform(*self.scale), draw.random(), draw.random()
        hflip, vflip = draw.random() < self.hflip, draw.random() < self.vflip
        base = (height, width)
        if self.of == "fitted":
            fitted = fit(height, width, out_height, out_width, self.resize)
            base = (fitted.height, fitted.width)
        h, w = max(1, round(base[0] * zoom)), max(1, round(base[1] * zoom))
        return Box2Box(
            height=h,
            width=w,
            left=round(right * (out_width - w)),  # below 0 where it is cropped
            top=round(down * (out_height - h)),
            hflip=hflip,
            vflip=vflip,
        )

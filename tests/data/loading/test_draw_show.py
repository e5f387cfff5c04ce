"""Pictures of samples, and the verb that shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cvtrain.augment.config import settled
from cvtrain.commands.show import _blocks, _picture, show
from cvtrain.data.masks import rles_from_masks
from cvtrain.report.draw import PALETTE, color, draw, grid, is_crowd, save, save_mask, to_rgb8
from cvtrain.storage import cache_folder, is_run_folder
from cvtrain.structures import Target

GRAY = np.full((100, 120, 3), 128, np.uint8)


def near(image, rgb, tolerance=40):
    return (np.abs(image.astype(int) - rgb).max(axis=2) <= tolerance).sum()


def test_small_images_are_enlarged_and_the_input_is_left_alone():
    image = np.full((32, 48, 3), 128, np.uint8)
    out = draw(image, [[4, 4, 20, 20]], [0], ["cat"])
    assert out.shape == (320, 480, 3)
    assert (image == 128).all()
    assert draw(image, min_side=1).shape == (32, 48, 3)
    assert draw(image, min_side=1, max_side=24).shape == (16, 24, 3)


def test_boxes_are_drawn_where_they_are_in_the_color_of_their_class():
    out = draw(GRAY, [[10, 20, 60, 90]], [2], ["a", "b", "c"], min_side=100)
    line = out[20:90, 10]
    assert near(line[None], color(2)) > 60
    assert near(out[:, 70:], color(2)) == 0  # nothing right of the box
    assert near(out, (255, 255, 255)) > 5 or near(out, (0, 0, 0)) > 5  # the name


def test_names_do_not_lie_on_each_other():
    boxes = [[10, 30, 70, 90], [12, 32, 72, 92], [14, 34, 74, 94]]
    one = draw(GRAY, boxes[:1], [0], ["name"])
    three = draw(GRAY, boxes, [0, 1, 2], ["name"] * 3)
    solo = near(one, color(0), 5)
    for k in range(3):
        assert near(three, color(k), 5) > 0.6 * solo


def test_scores_ignored_and_unknown_classes_are_drawn():
    plain = draw(GRAY, [[10, 30, 90, 90]], [7], ["a"])
    scored = draw(GRAY, [[10, 30, 90, 90]], [7], ["a"], scores=[0.5])
    ignored = draw(GRAY, [[10, 30, 90, 90]], [7], ["a"], ignore=[True])
    assert near(scored, color(7), 5) > near(plain, color(7), 5) > near(ignored, color(7), 5) == 0


def test_thin_boxes_are_white_on_a_dark_edge_and_below_the_others():
    out = draw(GRAY, [[10, 20, 60, 90]], [2], ["a", "b", "c"], min_side=100,
               thin=[[10, 20, 60, 90], [70, 10, 110, 95]])  # fmt: skip
    assert (out[10, 70:110] == 255).all()
    assert (out[94, 70:110] == 255).all()
    assert (out[10:95, 69] == 40).all()
    assert near(out[60:90, 10][None], color(2)) > 25


def test_masks_tint_and_a_legend_names_them():
    mask = np.zeros((100, 120), np.int64)
    mask[:, 60:] = 1
    mask[:10] = 255
    out = draw(GRAY, mask=mask, names=["background", "road"], min_side=100)
    assert out.shape[0] > 100
    assert out.shape[1] == 120
    assert (out[50, 10] == 128).all()  # background stays
    assert np.abs(out[50, 100] - (0.45 * 128 + 0.55 * PALETTE[1])).max() < 2
    assert out[5, 5].max() < 90  # void is dark
    masks = np.zeros((1, 100, 120), bool)
    masks[0, 30:60, 30:60] = True
    one = draw(GRAY, [[30, 30, 60, 60]], [0], ["thing"], masks=masks, min_side=100)
    assert np.abs(one[50, 45] - (64 + 0.5 * PALETTE[0])).max() < 2


def test_a_crowd_gets_a_legend_instead_of_names():
    boxes = np.array([[x, y, x + 8, y + 8] for x in range(0, 100, 10) for y in range(0, 90, 10)])
    out = draw(GRAY, boxes, np.zeros(len(boxes)), ["nucleus"], min_side=100)
    assert out.shape[0] > 100
    assert (out[4, 4] == 128).all()  # what is in the boxes stays in view


def test_a_crowd_of_outlines_has_no_boxes_but_of_what_has_no_outline():
    corners = [(x, y) for x in range(0, 100, 10) for y in range(0, 90, 10)]
    boxes = np.array([[x, y, x + 9, y + 9] for x, y in corners])
    masks = np.zeros((len(boxes), 100, 120), bool)
    for k, (x, y) in enumerate(corners):
        masks[k, y + 3 : y + 6, x + 3 : x + 6] = k > 1
    ignore = np.arange(len(boxes)) == 2
    out = draw(GRAY, boxes, np.zeros(len(boxes)), ["n"], masks=masks, ignore=ignore, min_side=100)
    edges = np.array([out[y, x + 1] for x, y in corners], int)
    assert np.abs(edges[:3] - [PALETTE[0], PALETTE[0], [150] * 3]).max() < 15
    assert (edges[3:] == 128).all()
    few = draw(GRAY, boxes[-2:], [0, 0], ["n"], masks=masks[-2:], min_side=100)
    assert np.abs(few[boxes[-1, 1], boxes[-1, 0] + 1].astype(int) - PALETTE[0]).max() < 15


def test_originals_are_shown_with_their_masks():
    mask = np.zeros((1, 100, 120), bool)
    mask[0, 30:60, 30:60] = True
    box = torch.tensor([[30.0, 30, 60, 60]])
    truth = Target(boxes=box, labels=torch.tensor([0]), rles=rles_from_masks(mask))
    out = _picture(GRAY, truth, ["thing"])
    assert np.abs(out[4 * 50, 4 * 45] - (64 + 0.5 * PALETTE[0])).max() < 2


def test_outlines_and_names_grow_with_the_image():
    image = np.full((3000, 3000, 3), 128, np.uint8)
    masks = np.zeros((1, 3000, 3000), bool)
    masks[0, 1000:2000, 1000:2000] = True
    out = draw(image, [[1000, 1000, 2000, 2000]], [0], ["thing"], masks=masks)
    inside = (0.5 * 128 + 0.5 * PALETTE[0]).astype(np.uint8)
    row = np.abs(out[1500, 1000:1500].astype(int) - inside).max(axis=1) > 2
    assert 9 <= row.sum() <= 20  # the box's edge and the outline
    named = np.flatnonzero((out[:1000, 1100] == PALETTE[0]).all(axis=1))
    assert len(named) > 50  # pixels high; of 3000


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 9), np.uint8), np.full((8, 9, 1), 60_000, np.uint16), np.eye(9)[:8, :, None],
     np.zeros((8, 9, 5), np.uint8), np.full((4, 4, 3), np.nan)],
)  # fmt: skip
def test_any_depth_can_be_looked_at(image):
    out = to_rgb8(image)
    assert out.shape == (*image.shape[:2], 3)
    assert out.dtype == np.uint8


def test_floats_are_shown_as_a_network_takes_them():
    half = np.full((4, 5, 3), 0.5, np.float32)
    half[0, 0] = 0.75
    assert (to_rgb8(half)[1:] == 127).all()
    wide = np.linspace(-3, 500, 60, dtype=np.float64).reshape(4, 5, 3)
    assert (to_rgb8(wide).min(), to_rgb8(wide).max()) == (0, 255)


def test_a_grid_has_a_cell_for_each_picture(tmp_path):
    pictures = [np.full((40 + 5 * k, 60, 3), 40 * k, np.uint8) for k in range(5)]
    out = grid(pictures, 3, [f"a rather long caption of picture number {k}" for k in range(5)])
    assert out.shape[1] > 3 * 60
    assert out.shape[0] > 2 * 60
    for k in range(5):
        assert (out == 40 * k).all(axis=2).sum() > 40 * 60 * 0.9
    path = save(tmp_path / "deep" / "x.png", out)
    assert np.array_equal(np.asarray(Image.open(path)), out)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]
    with pytest.raises(ValueError, match="at least one"):
        grid([], 2)


@pytest.mark.parametrize("task", ["classification", "instance_segmentation"])
def test_show_draws_originals_beside_variants(tmp_path, capsys, task):
    reader = {"_target_": "cvtrain.data.shapes.ShapesReader", "task": task, "num_train": 8,
              "num_val": 2, "scene_size": 64}  # fmt: skip
    data = {"name": "shapes", "reader": reader, "on_bad": "error", "val_fraction": 0.2,
            "channels": 3, "batch_size": 2, "image_size": 64, "resize": "letterbox",
            "num_workers": 0, "cache": "none"}  # fmt: skip
    augment = {"name": "mine", "transforms": [{"_target_": "cvtrain.augment.HSV", "hue": 90.0}]}
    cfg = {"data": data, "augment": augment, "task": {"name": task}, "seed": 0}
    assert show({**cfg, "run_dir": str(tmp_path / "run")}) == 0
    path = tmp_path / "run" / "shapes_mine.png"
    assert str(path) in capsys.readouterr().out
    first = np.asarray(Image.open(path))
    assert first.shape[0] > 5 * 320
    assert first.shape[1] > 6 * 320
    show({**cfg, "run_dir": str(tmp_path / "again")})
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again" / "shapes_mine.png")), first)


def node_of(*names, **changes):
    folder, node = Path(__file__).parents[3] / "conf" / "augment", {}
    for name in names:
        node |= yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))
    return {**node, **changes}


@pytest.fixture
def drawn(monkeypatch):
    """What ``show`` lays out: captions and heads, in place of a picture."""
    calls = []

    def record(images, columns, captions, heads, title):
        calls.append((columns, captions, heads, title, images))
        return grid(images[:1], 1)

    monkeypatch.setattr("cvtrain.report.draw.grid", record)
    return calls


def show_shapes(tmp_path, augment, task="classification", **more):
    reader = {"_target_": "cvtrain.data.shapes.ShapesReader", "task": task, "num_train": 8,
              "num_val": 2, "scene_size": 48}  # fmt: skip
    data = {"name": "shapes", "reader": reader, "on_bad": "error", "val_fraction": 0.2,
            "channels": 3, "batch_size": 2, "image_size": 48, "resize": "letterbox",
            "num_workers": 0, "cache": "none"}  # fmt: skip
    cfg = {"data": data, "augment": augment, "task": {"name": task}, "seed": 0, **more}
    assert show({**cfg, "run_dir": str(tmp_path)}) == 0


def test_a_familys_variants_differ_and_say_what_was_done(tmp_path, drawn):
    show_shapes(tmp_path, node_of("weather"))
    ((columns, captions, heads, title, _),) = drawn
    assert columns == 6
    assert heads == ["original"] + ["weather, strength 0.5"] * 5
    assert title == "augment=weather on shapes, classification"
    assert (tmp_path / "shapes_weather.png").exists()
    kinds = {c.split(": ")[1] for c in captions if ": " in c}
    assert kinds == {"rain", "fog", "snow", "sun flare", "shadow"}
    assert all(c.endswith(".png)") for c in captions[::6])


def test_a_composition_has_a_block_a_family_and_one_of_all(tmp_path, drawn):
    show_shapes(tmp_path, node_of("weather", "geometric"), "detection")
    ((columns, captions, heads, _, _),) = drawn
    expected = ["geometric, strength 0.5", "weather, strength 0.5", "together"]
    assert heads == ["original", *(h for h in expected for _ in range(2))]
    for row in range(5):
        line = captions[row * columns : (row + 1) * columns]
        assert all("affine" in c for c in line[1:3])
        assert all("affine" not in c for c in line[3:5])
        assert all("affine" in c for c in line[5:])
    drawn.clear()
    show_shapes(tmp_path, node_of("weather", "geometric", "color"))
    assert drawn[0][0] == 1 + 3 + 2


def test_mixed_images_are_shown_with_their_shares(tmp_path, drawn):
    show_shapes(tmp_path, node_of("light", mixup=0.5, cutmix=0.5))
    ((columns, captions, heads, _, _),) = drawn
    assert heads[-4:] == ["mixup"] * 2 + ["cutmix"] * 2
    mixed = [c for k, c in enumerate(captions) if k % columns >= columns - 4]
    assert all(" + " in c or c.count(" ") == 0 for c in mixed)  # two of a class are that class
    assert any(" + " in c for c in mixed)


def test_mosaic_and_copy_paste_are_in_the_captions(tmp_path, drawn):
    show_shapes(tmp_path, node_of("light", mosaic=0.5, copy_paste=0.5), "instance_segmentation")
    ((_, captions, heads, _, _),) = drawn
    assert heads[1] == "light + mosaic + copy_paste"
    assert any("mosaic, affine, copy-paste" in c for c in captions)


def test_the_first_proposals_are_drawn_and_made_for_the_shown_images_alone(tmp_path, drawn):
    source = {"_target_": "cvtrain.proposals.source.SelectiveSearch", "mode": "single"}
    more = {"task": "detection", "proposals": {"name": "selective_search", **source}}
    show_shapes(tmp_path, node_of("light"), **more)
    assert drawn[0][3].endswith("; thin and white: the first 10 of selective_search")
    assert len(list(cache_folder("proposals").rglob("*.npz"))) == 5
    show_shapes(tmp_path, node_of("light"), "detection")
    with_boxes, without = ([np.asarray(p) for p in call[4]] for call in drawn)
    assert len(with_boxes) == len(without) == 30
    for a, b in zip(with_boxes, without, strict=True):
        assert (a == 255).all(axis=2).sum() > (b == 255).all(axis=2).sum() + 100


def test_heads_title_and_long_captions_have_their_place():
    pictures = [np.full((90, 120, 3), 90, np.uint8)] * 4
    plain = grid(pictures, 2, ["a"] * 4)
    headed = grid(pictures, 2, ["a"] * 4, heads=["left", "right"], title="both")
    assert headed.shape[0] > plain.shape[0]
    assert headed.shape[1] > plain.shape[1]  # blocks stand apart
    long = grid(pictures, 2, ["several words that need a second line below"] * 4)
    assert long.shape[0] > plain.shape[0]
    assert long.shape[1] == plain.shape[1]


def test_show_without_a_run_dir_makes_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reader = {"_target_": "cvtrain.data.shapes.ShapesReader", "num_train": 2, "num_val": 1,
              "scene_size": 32}  # fmt: skip
    data = {"name": "shapes", "reader": reader, "on_bad": "error", "val_fraction": 0.2,
            "channels": 3, "batch_size": 2, "image_size": 32, "resize": "stretch",
            "num_workers": 0, "cache": "none"}  # fmt: skip
    show({"data": data, "augment": None, "task": {"name": "detection"}, "seed": 1, "run_dir": None})
    (picture,) = tmp_path.glob("runs/show/*/shapes_none.png")
    assert is_run_folder(picture.parent)


def test_a_name_at_the_upper_edge_is_whole() -> None:
    image = np.zeros((320, 320, 3), np.uint8)

    def rows(top: float) -> int:
        """How many rows of pixels the letters have, white on the color of the class."""
        drawn = draw(image, np.array([[50.0, top, 250.0, 300.0]]), np.zeros(1, int), ["raccoon"])
        return int((drawn > 230).all(2).any(1).sum())

    found = [rows(top) for top in np.arange(0.0, 24.0, 0.35)]
    assert set(found) == {rows(150.0)}


@pytest.mark.parametrize(
    "name", ["new\nline", "latin\udce9", "tab\t", "\x1b[31m", "漢字 é", "x" * 300]
)
def test_any_name_can_be_drawn(name: str) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    box, first = np.array([[5.0, 5.0, 30.0, 30.0]]), np.zeros(1, int)
    drawn = draw(image, box, first, [name])
    legend = draw(image, mask=np.zeros((60, 80), np.uint8), names=[name, "b"])
    assert drawn.shape[2] == legend.shape[2] == 3
    assert grid([drawn, legend], 2, [name, name]).any()


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
def test_a_sliver_is_not_enlarged_to_a_picture_of_a_billion_pixels(shape: tuple[int, int]) -> None:
    height, width = shape
    boxes = [[0, 0, width, height]] * 30
    out = draw(np.zeros((*shape, 3), np.uint8), boxes, [0, 1] * 15, ["cat", "dog"])
    assert out.size < 5000 * 200 * 3


def test_an_augmentation_may_have_the_name_of_a_key():
    ((head, _, _),) = _blocks(settled({"name": "copy_paste", "copy_paste": 0.5}))
    assert head == "copy_paste"
    ((head, _, _),) = _blocks(settled({"name": "mine", "copy_paste": 0.5}))
    assert head == "mine + copy_paste"


@pytest.mark.parametrize(
    ("names", "plain"),
    [(["0", "1", "7"], True), (["background", "1", "2"], True), (["1", "2", "3"], False),
     (["0", "cat", "dog"], False), (["road", "car", "sky"], False)],
)  # fmt: skip
def test_class_0_of_masks_without_names_is_not_painted(names, plain, tmp_path):
    mask = np.zeros((100, 120), np.int64)
    mask[:50] = 1
    out = draw(GRAY, names=names, mask=mask, min_side=100)
    assert (out[75, 60] == GRAY[75, 60]).all() == plain
    assert not (out[25, 60] == GRAY[25, 60]).all()
    save_mask(tmp_path / "m.png", mask, names)
    with Image.open(tmp_path / "m.png") as image:
        assert (image.convert("RGB").getpixel((60, 75)) == (0, 0, 0)) == plain
        assert image.getpixel((60, 75)) == 0


def test_an_image_of_another_size_is_drawn_in_the_aspect_of_its_frame():
    """A network's square input, of a file of 400 x 200."""
    box, square = [[300.0, 20, 380, 180]], np.full((64, 64, 3), 128, np.uint8)
    out = draw(square, box, [2], ["a", "b", "c"], frame=(200, 400), max_side=480)
    assert out.shape == (240, 480, 3)
    assert near(out[30:210, 360:361], color(2)) > 150
    masks = np.zeros((1, 200, 400), bool)
    masks[0, 100:] = True
    out = draw(square, box, [2], ["a", "b", "c"], masks=masks, frame=(200, 400), max_side=480)
    assert near(out[130:, :300], np.array([128, 128, 128]), 5) == 0


def test_a_crowd_is_drawn_alike_though_one_side_has_few_boxes():
    many = np.tile([[10.0, 10, 20, 20]], (40, 1))
    few = many[:2]
    assert is_crowd((100, 120), many, np.zeros(40), ["cat"])
    assert not is_crowd((100, 120), few, np.zeros(2), ["cat"])
    alike = [
        draw(GRAY, b, np.zeros(len(b)), ["cat"], listed=[0], crowded=True) for b in (many, few)
    ]
    assert alike[0].shape == alike[1].shape  # a legend below each
    plain = draw(GRAY, few, [0, 0], ["cat"], crowded=False)
    assert near(plain, color(0), 5) > 3 * near(alike[1][:320], color(0), 5)

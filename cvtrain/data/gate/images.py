"""The gate's checks of files: images, their annotated sizes, masks, and copies of an image."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np

from cvtrain.data.formats.files import MAX_PIXELS
from cvtrain.data.formats.palette import color_name
from cvtrain.data.gate import decode_check
from cvtrain.data.gate.decode_check import STATUS, Probes
from cvtrain.data.gate.report import SplitState
from cvtrain.data.gate.segments import turn_annotations
from cvtrain.data.mask_file import FAR, VOID, apart, distances, nearest

_STATUS_SAYS = {
    decode_check.MISSING: "there is no such file",
    decode_check.EMPTY: "the file is empty (0 bytes)",
    decode_check.UNREADABLE: "not a readable image: {detail}",
    decode_check.TRUNCATED: "the file ends early: {detail}",
    decode_check.BOMB: f"{{detail}}, more than the limit of {MAX_PIXELS:,}",
    decode_check.CHANNELS: "{detail}",
    decode_check.NOT_FINITE: "{detail}",
}
_MODE_NAMES = {
    b"1": "black and white",
    b"L": "grayscale",
    b"LA": "grayscale with alpha",
    b"P": "palette",
    b"PA": "palette with alpha",
    b"RGB": "RGB",
    b"RGBA": "RGB with alpha",
    b"RGBX": "RGB with padding",
    b"CMYK": "CMYK",
    b"YCbCr": "YCbCr",
    b"LAB": "Lab",
    b"HSV": "HSV",
}
_RESIZED = 0.05  # of a side: annotated sizes further from the file's are another size of the image
_SAME_FACTOR = 0.02  # of it: height and width were resized alike

_ONE_CHANNEL = (b"1", b"L", b"P", b"I", b"F")  # and those that begin with I;16
_TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored upside down",
    5: "mirrored and turned",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned",
    8: "turned by 90 degrees counter-clockwise",
}


def leaves_root(name: str) -> bool:
    """Whether a name points out of the data set: absolute, or with too many ``..`` (lexically)."""
    path = posixpath.normpath(name)
    return posixpath.isabs(path) or path == ".." or path.startswith("../") or "\0" in name


def check_paths(state: SplitState) -> None:
    """Names that leave the root, that come twice, and ids that do: their rows are left out.

    The reader has looked already; this holds for readers of users' own, too.
    """
    table = state.table
    seen: dict[str, int] = {}
    for i in range(len(table)):
        name = table.files[i]
        mask = "" if table.masks is None else table.masks[i]
        bad = name if leaves_root(name) else mask
        if bad and leaves_root(bad):
            state.image_problem(i, "path-outside-root", f"{bad!r} leaves the data set's folder")
        elif state.images[i] and seen.setdefault(name, i) != i:
            state.image_problem(i, "duplicate-file", f"{name!r} is listed twice in {state.name}")
    if table.ids is not None and state.images.any():
        rows = np.flatnonzero(state.images)
        _, first, back = np.unique(table.ids[rows], return_index=True, return_inverse=True)
        for i, j in zip(rows.tolist(), rows[first[back]].tolist()):
            if i != j:
                message = f"id {table.ids[i]} is also that of {table.files[j]!r}"
                state.image_problem(i, "duplicate-image-id", message)


def check_images(state: SplitState, channels: int) -> None:
    """What opening the image files gave; the table's sizes become those of the upright files."""
    probes = state.files
    assert probes is not None
    for i in np.flatnonzero(~probes.ok).tolist():
        if state.reported("path-outside-root", i):
            continue  # and not opened
        status = int(probes.records["status"][i])
        message = _STATUS_SAYS[status].format(detail=probes.details.get(i, ""))
        state.image_problem(i, f"image-{STATUS[status]}", message)
    _note_files(state, probes, channels)
    _check_sizes(state, probes)


def _note_files(state: SplitState, probes: Probes, channels: int) -> None:
    records, ok = probes.records, probes.ok

    def turned(i: int) -> str:
        message = _TURNS[int(records["orientation"][i])]
        return f"EXIF orientation {records['orientation'][i]}: shown {message}"

    state.each_image(ok & (records["orientation"] > 1), "exif-rotation", turned)
    usual = {3: (b"RGB", b""), 1: (b"L", b"")}.get(channels)
    if usual is not None:
        modes = records["mode"]
        odd = ok & ~np.isin(modes, usual) & ~np.char.startswith(modes, b"I") & (modes != b"F")
        gray16 = ok & (channels == 3) & (np.char.startswith(modes, b"I") | (modes == b"F"))
        into = "RGB" if channels == 3 else "gray"

        def converted(i: int) -> str:
            mode = bytes(modes[i])
            return f"{_MODE_NAMES.get(mode, 'grayscale')}; read as {into}{_lost(mode, channels)}"

        state.each_image(odd | gray16, "color-mode", converted)
    state.each_image(
        ok & (records["bits"] > 8), "bit-depth", lambda i: f"{records['bits'][i]} bits per channel"
    )
    deep = np.flatnonzero(ok & (records["bits"] == 16))
    if len(deep):
        high = int(records["high"][deep].max())
        files = f"{len(deep):,} 16-bit file{'' if len(deep) == 1 else 's'} of {state.name}"
        state.split_problem("value-range", f"values of the {files} reach {high:,} of 65,535")
    floats = np.flatnonzero(ok & records["floating"])
    if len(floats):
        low, top = float(records["low"][floats].min()), float(records["high"][floats].max())
        files = f"{len(floats):,} float file{'' if len(floats) == 1 else 's'} of {state.name}"
        inside = low >= 0 and top <= 1
        code = "value-range" if inside else "float-range"
        also = "" if inside else ", and are taken as they are: a network expects 0 to 1"
        state.split_problem(code, f"values of the {files} reach from {low:g} to {top:g}{also}")
    for i in np.flatnonzero(ok):
        promised = decode_check.extension_format(state.table.files[int(i)])
        held = records["format"][i].decode()
        if promised and held and promised != held.replace("MPO", "JPEG").replace("DIB", "BMP"):
            ending = posixpath.splitext(state.table.files[int(i)])[1]
            state.image_problem(int(i), "extension-lies", f"{ending} file holds {_name(held)}")
    state.each_image(
        ok & (records["frames"] > 1) & (channels in (1, 3)),
        "image-frames",
        lambda i: f"{records['frames'][i]} frames or pages; the first is used",
    )


def _lost(mode: bytes, channels: int) -> str:
    if mode in (b"RGBA", b"LA", b"PA"):
        return ", the alpha channel is not used"
    return ", by its palette" if mode == b"P" and channels == 3 else ""


def _name(held: str) -> str:
    return {"JPEG2000": "a JPEG 2000", "MPO": "a JPEG"}.get(held, f"a {held}")


def _check_sizes(state: SplitState, probes: Probes) -> None:
    """Annotated sizes against the files'; with ``fix`` the file is right, and EXIF turns boxes.

    Not where the image was resized as a whole: its boxes may be in either size's pixels.
    """
    table, records, ok = state.table, probes.records, probes.ok
    upright = probes.upright
    stored = np.stack([records["stored_height"], records["stored_width"]], 1)
    wrong = ok & ((table.sizes != upright) & (table.sizes != -1)).any(1)
    sideways = wrong & (table.sizes == stored).all(1)

    def message(i: int) -> str:
        height, width = table.sizes[i]
        true = f"{upright[i, 1]} x {upright[i, 0]}"
        return f"annotated as {width} x {height}, the file has {true} pixels"

    def exif(i: int) -> str:
        height, width = table.sizes[i]
        return (
            f"annotated as {width} x {height}, as stored, but EXIF orientation "
            f"{records['orientation'][i]} makes it {upright[i, 1]} x {upright[i, 0]}"
        )

    resized = wrong & ~sideways & _are_resized(state, upright)
    state.each_image(resized, "size-mismatch", message)
    state.each_image(wrong & ~sideways & ~resized, "size-mismatch", message, repaired=state.fixing)
    state.each_image(sideways, "size-mismatch-exif", exif, repaired=state.fixing)
    if state.fixing and sideways.any():
        turn_annotations(state, np.flatnonzero(sideways), records["orientation"], stored)
    sizes = table.sizes.copy()
    sizes[ok] = upright[ok]
    state.set_table(sizes=sizes)


def _are_resized(state: SplitState, upright: np.ndarray) -> np.ndarray:
    """Bool ``(N,)``: images with boxes in pixels, resized as a whole after they were annotated."""
    table = state.table
    if table.relative or not (state.reads("box") or state.reads("segment")):
        return np.zeros(len(table), bool)
    factors = table.sizes / np.maximum(upright, 1)  # (N, 2) height, width
    alike = np.abs(factors[:, 0] - factors[:, 1]) <= _SAME_FACTOR * factors.max(1)
    far = (np.abs(factors - 1) > _RESIZED).all(1)
    resized: np.ndarray = alike & far & (np.diff(table.starts) > 0)
    return resized


def check_void_masks(states: Sequence[SplitState]) -> None:
    """A note where 255 may be an object: masks of nothing but background and void beside others.

    0 and 1 in some files, 0 and 255 in others: merged from two tools, the latter lose their object.
    """
    binary = [
        (state, i, set(np.unique(values).tolist()))
        for state in states
        if state.masks is not None
        and not state.table.mask_colors
        and mask_values(state).tolist() == [0, 1]
        for i, (values, _) in sorted(state.masks.values.items())
        if bytes(state.masks.records[i]["mode"]) == b"L"
    ]
    void = [(state, i) for state, i, values in binary if values == {0, VOID}]
    if void and any(1 in values and VOID not in values for _, _, values in binary):
        state, i = void[0]
        assert state.table.masks is not None
        message = f"{len(void):,} of {len(binary):,} masks hold 0 and {VOID} only, others 0 and 1"
        state.split_problem("mask-void-only", message, file=state.table.masks[i])


def check_masks(state: SplitState) -> None:
    """Mask files: there, readable, one channel, the image's size, values that are classes."""
    table, probes = state.table, state.masks
    assert probes is not None
    assert table.masks is not None
    records = probes.records
    _check_lossy(state, probes)
    for i in range(len(table)):
        name = table.masks[i]
        status = int(records["status"][i])
        if not name:
            state.image_problem(i, "mask-missing", "there is no mask for this image")
        elif status == decode_check.MISSING:
            state.image_problem(i, "mask-missing", f"there is no mask file {name!r}")
        elif status != decode_check.OK:
            text = _STATUS_SAYS[status].format(detail=probes.details.get(i, ""))
            state.image_problem(i, f"mask-{STATUS[status]}", text, file=name)
        else:
            _check_mask(state, probes, i, name)


def _check_mask(state: SplitState, probes: Probes, i: int, name: str) -> None:
    record, table, files = probes.records[i], state.table, state.files
    if i not in probes.values:
        mode = bytes(record["mode"])
        text = _MODE_NAMES.get(mode, "floating point" if mode == b"F" else mode.decode())
        if table.mask_colors:
            message = f"{text}; its colors cannot be read, save it as 8-bit RGB"
        else:
            message = f"{text}; a mask has one channel, the class index of each pixel"
        state.image_problem(i, "mask-mode", message, file=name)
        return
    if files is not None and files.ok[i]:
        height, width = files.upright[i]
        if (record["height"], record["width"]) != (height, width):
            message = (
                f"the mask is {record['width']} x {record['height']}, "
                f"its image {width} x {height} pixels"
            )
            state.image_problem(i, "mask-size", message, file=name)
    if not len(mask_values(state)) or state.reported("mask-jpeg", i):
        return  # without classes, which is an error of its own, no value is wrong
    values, counts = probes.values[i]
    known = np.concatenate([mask_values(state), void_values(state)])
    wrong = ~np.isin(values, known)
    if not wrong.any():
        return
    colors = table.mask_colors
    most = np.argsort(-counts[wrong], kind="stable")[:4]
    shown = ", ".join(
        f"{color_name(int(values[wrong][k])) if colors else values[wrong][k]} "
        f"({counts[wrong][k]:,} pixels)"
        for k in most
    )
    more = f" and {wrong.sum() - 4:,} more" if wrong.sum() > 4 else ""
    if colors:
        message = f"color {shown}{more}; not among the {len(known)} of the palette"
        state.image_problem(i, "mask-color", message, file=name, repaired=state.fixing)
        return
    indices = table.mask_values is None
    classes = f"0..{len(table.classes) - 1}" if indices else _few(mask_values(state))
    message = f"value {shown}{more}; classes are {classes}, void is {_few(void_values(state))}"
    state.image_problem(i, "mask-value", message, file=name, repaired=state.fixing)


def _check_lossy(state: SplitState, probes: Probes) -> None:
    """JPEG masks: their values become the nearest class's or void's, where these are apart."""
    table, known = state.table, np.concatenate([mask_values(state), void_values(state)])
    assert table.masks is not None
    for i in np.flatnonzero(probes.ok & probes.records["lossy"]).tolist():
        if i not in probes.values or not len(mask_values(state)):
            continue
        values, counts = probes.values[i]
        colors = table.mask_colors
        off = int(counts[~np.isin(values, known)].sum())
        share = f"{off:,} of {counts.sum():,} pixels"
        if not apart(known, colors) and (len(values) > 1 or off):
            message = (
                f"a JPEG of {len(values)} values: its pixels are not exactly what was saved, "
                f"and {_classes_said(state)} lie too close to tell them apart"
            )
            state.image_problem(i, "mask-jpeg", message, file=table.masks[i])
            continue
        if not off:
            state.image_problem(i, "mask-lossy", "the mask is a JPEG", file=table.masks[i])
            continue
        far = counts[distances(values, known, colors) > FAR].sum()
        if far > counts.sum() / 4:
            message = (
                f"a JPEG whose values are not those of classes: {far:,} of {counts.sum():,} pixels "
                f"are more than {FAR} from any of {_classes_said(state)}"
            )
            state.image_problem(i, "mask-jpeg", message, file=table.masks[i])
            continue
        message = f"the mask is a JPEG; {share} are not exactly a class's and count as the nearest"
        state.image_problem(i, "mask-lossy", message, file=table.masks[i])
        taken, back = np.unique(nearest(values, known, colors), return_inverse=True)
        probes.values[i] = (taken, np.bincount(back.ravel(), counts).astype(np.int64))


def check_palettes(states: Sequence[SplitState]) -> None:
    """Palette masks of all splits: an index has one color, that of most masks; black is index 0.

    Grays in their order are no colors, void has any.
    """
    where: list[tuple[SplitState, int]] = []
    used: list[tuple[np.ndarray, np.ndarray]] = []
    for state in states:
        if state.masks is None or state.table.mask_colors:
            continue
        for i, colors in sorted(state.masks.palettes.items()):
            values, _ = state.masks.values[i]
            seen = ~np.isin(values, void_values(state))
            where.append((state, i))
            used.append((values[seen], colors[seen]))
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(np.stack(u, 1) for u in used)])
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    usual = {int(i): int(c) for i, c in pairs[np.argsort(counts, kind="stable")]}  # the last wins
    for (state, i), (values, colors) in zip(where, used):
        odd = [(int(v), int(c)) for v, c in zip(values, colors) if c != usual[int(v)]]
        if odd:
            assert state.table.masks is not None
            index, color = odd[0]
            message = (
                f"index {index} is the color {color_name(color)}, in most other masks "
                f"{color_name(usual[index])}"
            )
            state.image_problem(i, "mask-palette", message, file=state.table.masks[i])
    black = next((index for index, color in usual.items() if not color), 0)
    if black and usual.get(0):
        state = where[0][0]
        message = (
            f"palette masks: black is index {black} ({_named_class(state, black)}), "
            f"index 0 ({_named_class(state, 0)}) is the color {color_name(usual[0])}"
        )
        state.split_problem("palette-order", message)


def _named_class(state: SplitState, value: int) -> str:
    at = np.flatnonzero(mask_values(state) == value)
    return state.table.classes.names[int(at[0])] if len(at) else "no class"


def _classes_said(state: SplitState) -> str:
    if state.table.mask_colors:
        return "the palette's colors"
    return f"{_few(mask_values(state))} (void: {_few(void_values(state))})"


def _few(values: np.ndarray) -> str:
    message = ", ".join(str(v) for v in values[:12])
    return f"{message}, ... ({len(values)})" if len(values) > 12 else message


def mask_values(state: SplitState) -> np.ndarray:
    """int64 ``(K,)``: the pixel value of each class."""
    return state.table.class_values


def void_values(state: SplitState) -> np.ndarray:
    """int64 ``(V,)``: the pixel values that are void, 255 too where they are no colors."""
    return state.table.void_values


def check_copies(states: Sequence[SplitState]) -> None:
    """Notes on the same pixels twice: in one split, or in two (a leak)."""
    where: list[tuple[SplitState, int]] = []
    digests: list[np.ndarray] = []
    for state in states:
        if state.files is None:
            continue
        rows = np.flatnonzero(state.images & state.files.ok)
        where += [(state, int(i)) for i in rows]
        digests.append(state.files.records["digest"][rows])
    if not where:
        return
    _, first, back = np.unique(
        np.concatenate(digests), axis=0, return_index=True, return_inverse=True
    )
    for k in np.flatnonzero(first[back.ravel()] != np.arange(len(where))):
        state, i = where[int(k)]
        origin, j = where[int(first[back.ravel()[k]])]
        if origin is state:
            message = (
                f"the same pixels as {origin.table.files[j]!r}{_conflict(origin, j, state, i)}"
            )
            state.image_problem(i, "duplicate-image", message)
        else:
            message = f"the same pixels as {origin.table.files[j]!r} in {origin.name}"
            state.image_problem(i, "leak", message + _conflict(origin, j, state, i))


def _conflict(a: SplitState, i: int, b: SplitState, j: int) -> str:
    if a.table.tags is not None and b.table.tags is not None:
        sets = [{s.table.classes.names[t] for t in s.table.tags_of(k)} for s, k in ((a, i), (b, j))]
        if sets[0] == sets[1]:
            return ""
        message = [", ".join(map(repr, sorted(names))) or "no class" for names in sets]
        return f", there {message[0]}, here {message[1]}"
    if a.table.image_labels is None or b.table.image_labels is None:
        return ""
    first, second = int(a.table.image_labels[i]), int(b.table.image_labels[j])
    if first == second or min(first, second) < 0:
        return ""
    return f", there {a.table.classes.names[first]!r}, here {b.table.classes.names[second]!r}"

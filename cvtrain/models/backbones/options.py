"""Which keywords of ``timm.create_model`` a config may set. No torch: the command line asks too.

A checkpoint brings its config along, so a config is as untrusted as a file from the net: it must
neither fetch weights nor read files, and what the backbone itself decides is not set twice.
"""

from __future__ import annotations

from collections.abc import Mapping

INSTEAD = {
    "model_name": "write backbone.name=NAME",
    "pretrained": "write backbone.pretrained=true",
    "checkpoint_path": "write backbone.weights=FILE",
    "in_chans": "write data.channels=N",
    "num_classes": "the number of classes comes from the data",
    "features_only": "a backbone gives its maps anyway",
    "out_indices": "a backbone gives its last map of each stride",
}
REFUSED = ("pretrained", "checkpoint", "feature")
"""Beginnings of keywords that fetch, read files or change what the model gives."""
REFUSED_TOO = frozenset({"cache_dir", "device", "dtype", "scriptable", "exportable", "no_jit"})


def refused_option(options: Mapping[str, object]) -> str | None:
    """What is wrong with ``backbone.options``, in one line; None where nothing is."""
    for key in map(str, options):
        if key in INSTEAD or key in REFUSED_TOO or key.startswith(REFUSED):
            why = INSTEAD.get(key, "only cvtrain sets it")
            return f"backbone.options.{key} is not taken: {why}"
    return None

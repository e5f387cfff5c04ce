"""What every semantic segmentation model does in half precision, and without a class to learn."""

from __future__ import annotations

import pytest
import torch

from cvtrain.models.base import total_loss
from tests.models.test_contract import MODELS, SIZE, given, overrides

TASK = "semantic_segmentation"
every = pytest.mark.parametrize("name", [n for n, m in MODELS.items() if TASK in m["tasks"]])


@every
def test_half_floats_say_nearly_what_floats_say(name, build_model, make_batch) -> None:
    """Logits leave in float32, near those without; a step of such losses moves every weight."""
    model = build_model(*overrides(name, TASK))
    images, targets = make_batch(TASK, [2, 1, 3, 4], SIZE)
    full = model.predict(images, *given(name, images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.predict(images, *given(name, images))
        loss = total_loss(model.train().loss(images, targets, *given(name, images)))
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    for a, b in zip(full, half, strict=True):
        assert b.logits.dtype == torch.float32
        # Where two pixels are nearly alike DeconvNet's switches differ: its values are elsewhere.
        share = 0.5 if name == "deconvnet" else 0.1
        assert float((a.logits - b.logits).norm()) <= share * float(a.logits.norm())


@every
@pytest.mark.parametrize("loss", ["cross_entropy", "ce_dice"])
def test_a_step_of_nothing_but_void_changes_no_weight_to_nan(
    name, loss, build_model, make_batch
) -> None:
    model = build_model(*overrides(name, TASK), f"loss={loss}").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for objects in ([0, 0, 0, 0], [2, 1, 3, 4]):
        images, targets = make_batch(TASK, objects, SIZE)
        value = total_loss(model.loss(images, targets, *given(name, images)))
        assert (value.item() == 0.0) == (not any(objects))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())

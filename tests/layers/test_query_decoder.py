"""Query selection and the decoder: who is chosen, whose loss trains whom."""

from __future__ import annotations

import pytest
import torch

from cvtrain.layers.query_decoder import QueryDecoder, QuerySelection, cell_places

SIZES = [(4, 6), (2, 3), (1, 2)]
CELLS = 24 + 6 + 2


def decoder(layers: int = 3) -> QueryDecoder:
    torch.manual_seed(0)
    made = QueryDecoder(8, 3, layers, heads=2, levels=3, points=2, hidden=8, prior=0.01)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return made


def test_cells_propose_boxes_around_their_centers() -> None:
    boxes = cell_places(SIZES, torch.device("cpu")).sigmoid()
    assert boxes.shape == (CELLS, 4)
    torch.testing.assert_close(boxes[0], torch.tensor([1 / 12, 1 / 8, 0.05, 0.05]))
    torch.testing.assert_close(boxes[25], torch.tensor([0.5, 0.25, 0.1, 0.1]))
    torch.testing.assert_close(boxes[-1], torch.tensor([0.75, 0.5, 0.2, 0.2]))


def test_the_cells_of_the_likeliest_class_are_chosen() -> None:
    torch.manual_seed(0)
    selection = QuerySelection(8, 3, 0.01)
    memory = torch.randn(2, CELLS, 8)
    features, guess = selection(memory, SIZES, 5)
    every, all_guesses = selection(memory, SIZES, 1000)  # more than there are
    assert features.shape == (2, 5, 8)
    assert every.shape == (2, CELLS, 8)
    best = all_guesses.logits.amax(-1)
    torch.testing.assert_close(guess.logits.amax(-1), best[:, :5])
    assert (best.diff() <= 0).all()
    proposed = cell_places(SIZES, memory.device)
    assert (guess.places[:, :, None] - proposed).abs().sum(-1).amin(-1).max() < 0.1  # at the start


def test_the_first_layers_do_not_depend_on_the_later_ones() -> None:
    made = decoder()
    queries, places, memory = torch.randn(2, 5, 8), torch.randn(2, 5, 4), torch.randn(2, CELLS, 8)
    whole = made(queries, places, made.values(memory), SIZES)
    part = made(queries, places, made.values(memory, 2), SIZES)
    assert [len(whole), len(part)] == [3, 2]
    for a, b in zip(whole, part, strict=False):
        torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=0)
        torch.testing.assert_close(a.places, b.places, rtol=0, atol=0)


def test_boxes_are_corrected_and_looked_forward_twice() -> None:
    made = decoder()
    queries, memory = torch.randn(1, 4, 8), torch.randn(1, CELLS, 8)
    places = torch.randn(1, 4, 4)
    guesses = made(queries, places, made.values(memory), SIZES)
    changes = []
    for heads in made.heads:
        heads.boxes.register_forward_hook(lambda _, given, out: changes.append(out.detach()))
    again = made(queries, places, made.values(memory), SIZES)
    for i, guess in enumerate(again):
        torch.testing.assert_close(guess.places, places + sum(changes[: i + 1]))
    for i, guess in enumerate(guesses):
        # Layer i's boxes train the head of its own layer and of the one before, no earlier one's.
        last = [heads.boxes[-1].bias for heads in made.heads]
        found = torch.autograd.grad(guess.places.sum(), last, allow_unused=True, retain_graph=True)
        assert [j for j, g in enumerate(found) if g is not None] == list(
            range(max(0, i - 1), i + 1)
        )


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="decoder_layers=0 must be at least 1"):
        decoder(0)

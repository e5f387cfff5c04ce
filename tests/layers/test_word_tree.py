"""The tree of classes: its softmaxes and answers against slow ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cvtrain.layers.word_tree import WordTree

#     root
#    0     1
#  2 3 4   5 6
#  7 8     9
PARENTS = [-1, -1, 0, 0, 0, 1, 1, 2, 2, 5]


def conditional(numbers: list[float], node: int) -> float:
    siblings = [n for n, p in enumerate(PARENTS) if p == PARENTS[node]]
    return math.exp(numbers[node]) / sum(math.exp(numbers[n]) for n in siblings)


def probability(numbers: list[float], node: int) -> float:
    product = 1.0
    while node >= 0:
        product *= conditional(numbers, node)
        node = PARENTS[node]
    return product


def test_the_losses_equal_slow_ones() -> None:
    classes = [7, 8, 4, 0, 9]
    tree = WordTree(PARENTS, classes)
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(20) % 5
    found = tree.surprise(logits, labels)
    for row, label, value in zip(logits.tolist(), labels.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(-math.log(probability(row, classes[label])), rel=1e-4)
    known = tree.log_conditional(logits).exp()
    for n in range(10):
        assert float(known[3, n]) == pytest.approx(conditional(logits[3].tolist(), n), rel=1e-4)
    assert tree.surprise(logits[:0], labels[:0]).shape == (0,)


def test_gradients_reach_the_siblings_of_the_path_alone() -> None:
    tree = WordTree(PARENTS, [8])
    logits = torch.randn(1, 10).requires_grad_()
    tree.surprise(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].ne(0).nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 7, 8]


def test_a_flat_tree_is_a_softmax() -> None:
    tree = WordTree([-1] * 4, range(4))
    logits, labels = torch.randn(6, 4) * 50, torch.tensor([0, 1, 2, 3, 0, 1])
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(tree.surprise(logits, labels), expected)
    message, sure = tree.answer(logits, 0.5)
    torch.testing.assert_close(sure, logits.softmax(dim=1).amax(dim=1))
    assert torch.equal(message, logits.argmax(dim=1))


def slow_answer(numbers: list[float], classes: list[int], threshold: float) -> tuple[int, float]:
    def useful(node: int) -> bool:
        above, below = node, [node]
        while above >= 0:
            if above in classes:
                return True
            above = PARENTS[above]
        for n in below:
            below += [c for c, p in enumerate(PARENTS) if p == n]
        return bool(set(below) & set(classes))

    place, answer = -1, (0, 0.0)
    while True:
        ways = [n for n, p in enumerate(PARENTS) if p == place and useful(n)]
        if not ways:
            return answer
        best = max(ways, key=lambda n: conditional(numbers, n))
        met = answer[1] > 0
        if met and probability(numbers, best) < threshold:
            return answer
        place = best
        if best in classes:
            answer = (classes.index(best), probability(numbers, best))


@pytest.mark.parametrize("classes", [[7, 8, 4, 0, 9], [0, 1], [7, 8, 3, 4, 9, 6], [6], [2]])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_the_answers_equal_slow_ones(classes: list[int], threshold: float) -> None:
    tree = WordTree(PARENTS, classes)
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(1)) * 2
    labels, scores = tree.answer(logits, threshold)
    for row, label, score in zip(logits.tolist(), labels.tolist(), scores.tolist(), strict=True):
        expected = slow_answer(row, classes, threshold)
        assert label == expected[0]
        assert score == pytest.approx(expected[1], rel=1e-4)
    assert tree.answer(logits[:0], threshold)[0].shape == (0,)


def test_an_unsure_breed_is_a_dog() -> None:
    tree = WordTree([-1, -1, 0, 0], [0, 1, 2, 3])  # dog, cat; terrier, poodle
    sure, unsure = [3.0, 0.0, 5.0, 0.0], [3.0, 0.0, 0.1, 0.0]
    labels, scores = tree.answer(torch.tensor([sure, unsure]), 0.6)
    assert labels.tolist() == [2, 0]
    assert float(scores[1]) == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-4)


@pytest.mark.parametrize(
    ("parents", "classes"), [([], []), ([0], [0]), ([1, -1], [0]), ([-1], [1]), ([-1], [0, 0])]
)
def test_no_tree(parents: list[int], classes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"tree\."):
        WordTree(parents, classes)

"""Hierarchical classification: a softmax among siblings, at every place of a tree.

Paper: Redmon & Farhadi 2016 (arXiv 1612.08242), section 4.1. A class's number says how probable it
is where its parent is; its probability is the product along the path from the root:
Pr(terrier) = Pr(terrier | dog) Pr(dog | animal) Pr(animal). What is at the top is conditioned on
there being an object at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WordTree(nn.Module):
    """The tree's softmaxes, losses and answers.

    Args:
        parents: for each of N nodes the node above it, which comes before it; -1: at the top.
        classes: the nodes of the K classes that are asked for and answered.

    Raises:
        ValueError: parents that do not come first, nodes that are not there or a class twice.
    """

    group: Tensor
    paths: Tensor
    softmax_below: Tensor
    above: Tensor
    is_class: Tensor

    def __init__(self, parents: Sequence[int], classes: Sequence[int]) -> None:
        super().__init__()
        count = len(parents)
        if not count or any(not -1 <= p < n for n, p in enumerate(parents)):
            raise ValueError(f"tree.parents={list(parents)[:10]}: each comes before its children")
        if len(set(classes)) < len(classes) or not all(0 <= c < count for c in classes):
            raise ValueError(f"tree.classes={list(classes)[:10]}: one node of {count} each, once")
        self.size = count
        tops = sorted(set(parents))  # those that have children, the root (-1) first
        groups = {parent: g for g, parent in enumerate(tops)}
        self.groups = len(tops)
        self.members: list[list[int]] = [[] for _ in tops]
        for node, parent in enumerate(parents):
            self.members[groups[parent]].append(node)
        way = [[*_path(parents, c)] for c in classes]
        longest = max((len(p) for p in way), default=1)
        padded = [p + [count] * (longest - len(p)) for p in way]
        above = [-1] * (count + 1)  # the class at a node, else that of the nearest node above
        label = {node: k for k, node in enumerate(classes)}
        for node, parent in enumerate(parents):
            above[node] = label.get(node, above[parent] if parent >= 0 else -1)
        useful = [a >= 0 for a in above]  # a class at it, above it or below it
        for path in way:
            for node in path:
                useful[node] = True
        self.useful = [[n for n in nodes if useful[n]] for nodes in self.members]
        ways = [groups.get(n, -1) for n in range(count)] + [groups[-1]]
        ways = [g if g >= 0 and self.useful[g] else -1 for g in ways]
        for name, values in (
            ("group", [groups[p] for p in parents]),  # (N,): which softmax a node belongs to
            ("paths", padded),  # (K, D): the nodes from a class up to the top, then N
            ("softmax_below", ways),  # (N + 1,): the softmax below a node, -1: none; N is the root
            ("above", above),  # (N + 1,): a label, -1: none
            ("is_class", [n in label for n in range(count + 1)]),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def log_conditional(self, logits: Tensor) -> Tensor:
        """``(M, N)`` numbers -> float32 ``(M, N)`` log-probabilities, each given its parent."""
        logits = logits.float()
        rows = self.group.expand_as(logits)
        top = logits.detach().new_full((len(logits), self.groups), -torch.inf)
        top = top.scatter_reduce(1, rows, logits.detach(), "amax")  # (M, G)
        moved = logits - top[:, self.group]
        total = torch.zeros_like(top).index_add(1, self.group, moved.exp())  # (M, G)
        return moved - total.log()[:, self.group]

    def surprise(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the log-probability of each class: the cross-entropies along its path, added up.

        Args:
            logits: ``(M, N)``.
            labels: int64 ``(M,)`` in 0..K-1.

        Returns:
            float32 ``(M,)``.
        """
        known = self.log_conditional(logits)
        known = torch.cat([known, known.new_zeros(len(known), 1)], dim=1)  # (M, N + 1)
        return -known.gather(1, self.paths[labels]).sum(dim=1)

    @torch.no_grad()
    def answer(self, logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Walk down the tree, at every split to the likeliest child, until it is too unlikely.

        The walk stops before a node whose probability is below ``threshold``, but not before it
        has met a class. Children with no class at them, above or below are no way to go.

        Args:
            logits: ``(M, N)``.
            threshold: 0..1.

        Returns:
            int64 ``(M,)`` labels in 0..K-1, the last class met, and float32 ``(M,)`` its
            probability; 0, with any label, where there is no class to be met.
        """
        known = self.log_conditional(logits)
        count = len(known)
        device = known.device
        place = torch.full((count,), self.size, device=device)
        sure = torch.zeros(count, device=device)  # log-probability of the place
        labels = torch.zeros(count, dtype=torch.int64, device=device)
        scores = torch.full((count,), -torch.inf, device=device)
        while True:
            below = self.softmax_below[place]  # (M,)
            child = torch.full_like(place, self.size)
            for g in below[below >= 0].unique().tolist():
                here = (below == g).nonzero().flatten()
                nodes = torch.tensor(self.useful[g], device=device)
                child[here] = nodes[known[here][:, nodes].argmax(dim=1)]
            likely = sure + known.gather(1, child.clamp(max=self.size - 1)[:, None])[:, 0]
            go = (below >= 0) & ((likely.exp() >= threshold) | (self.above[place] < 0))
            if not bool(go.any()):
                return labels, scores.exp()
            place, sure = torch.where(go, child, place), torch.where(go, likely, sure)
            met = go & self.is_class[place]
            labels = torch.where(met, self.above[place], labels)
            scores = torch.where(met, sure, scores)


def _path(parents: Sequence[int], node: int) -> list[int]:
    """A node and all above it."""
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path

"""The tables of a data set for the verbs that look at boxes alone: proposals and anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from cvtrain.data.table import Table


def checked_tables(
    cfg: Mapping[str, Any], console: Console, splits: list[str] | None = None
) -> dict[str, Table]:
    """The tables of ``cfg["data"]`` as training would take them; says what the gate says.

    Args:
        cfg: the resolved config; reads ``data``, ``task.name``, ``seed`` and ``trust``.
        console: where it is said.
        splits: None: all there are.

    Raises:
        DataError: the data set has errors, or none that could be read.
        UsageError: a value that cannot be used.
    """
    from cvtrain.data.gate.run import label_options, run_gate
    from cvtrain.data.source import make_reader, split_seed

    data, seed = cfg["data"], cfg["seed"]
    reader = make_reader(data, cfg.get("trust") or (), cfg.get("overrides") or ())
    if hasattr(reader, "found"):
        console.print(reader.found, soft_wrap=True)
    report = run_gate(
        reader,
        cfg["task"]["name"],
        on_bad=data["on_bad"],
        val_fraction=data["val_fraction"],
        seed=split_seed(data, seed),
        channels=data["channels"],
        splits=splits,
        **label_options(data),
    )
    report.select(data, seed)
    for line in report.summary_lines():
        console.print(line, soft_wrap=True)
    return report.tables

"""Tables as one task wants them, made of what the gate let through."""

from __future__ import annotations

from collections.abc import Mapping

from cvtrain.data.image_labels import for_task, main_objects
from cvtrain.data.masks import semantic_table
from cvtrain.data.table import Table
from cvtrain.errors import DataError
from cvtrain.structures import IGNORE_INDEX


def task_tables(tables: Mapping[str, Table], task: str) -> dict[str, Table]:
    """Tables with what the task needs: one object per image, a background class of masks, tags.

    Args:
        tables: split -> table, as the gate left it.
        task: one of ``TASKS``.

    Raises:
        DataError: what the task needs is not there, or more classes than masks can number.
    """
    ready = {}
    for split, table in tables.items():
        table = for_task(table, task)
        if task == "localization":
            table = main_objects(table)
        if task == "semantic_segmentation":
            if table.masks is None:
                if table.segments is None and table.num_annotations:
                    raise DataError("no masks and no segments here; use task=detection")
                table = semantic_table(table)
            if len(table.classes) > IGNORE_INDEX:
                raise DataError(
                    f"{len(table.classes)} classes; semantic masks hold at most {IGNORE_INDEX}"
                )
        ready[split] = table
    return ready

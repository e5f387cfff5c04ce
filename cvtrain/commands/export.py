"""``cvtrain export`` on the command line: which checkpoint, what of it, where to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.config.command import CHECKPOINT, Command, CommandLine
from cvtrain.config.groups import GROUPS, ConfDirs
from cvtrain.errors import UsageError

if TYPE_CHECKING:
    from cvtrain.config.overrides import Typed

COMMAND = Command(
    "export",
    "write a trained backbone as weights that timm loads: ckpt= what=backbone [out=FILE]",
    run="cvtrain.export.backbone:export",
    configure="cvtrain.commands.export:export_config",
    reads=("ckpt", "what", "out"),
    unread={
        **{f"{group}.": CHECKPOINT for group in GROUPS},
        "run_dir": "{key}= is read by {readers}, not by {verb}; the file it writes is out=FILE",
    },
    order=3,
)

SUFFIX = ".safetensors"


def export_config(command: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """What ``export`` hands to the engine: command, ckpt, what, out (both absolute), trust.

    Raises:
        UsageError: a key it does not read, no checkpoint, nothing to export, a file that is there.
    """
    from cvtrain.config.compose import check_reads
    from cvtrain.config.overrides import by_key, parse
    from cvtrain.config.runs import check_root, existing_checkpoint

    typed = parse(command.overrides)
    check_reads(command.verb, typed)
    check_root(typed, command.verb)
    given = by_key(typed)
    checkpoint = existing_checkpoint(command.verb, given)
    if "what" not in given or given["what"].value is None:
        raise UsageError("export needs what=backbone: the weights of the backbone, for timm")
    return {
        "command": command.verb,
        "ckpt": str(checkpoint),
        "what": given["what"].value,
        "out": str(_out(checkpoint, given)),
        "trust": given["trust"].value if "trust" in given else [],
    }


def _out(checkpoint: Path, given: Mapping[str, Typed]) -> Path:
    """The file to write, which must not be there."""
    from cvtrain.config.compose import absolute

    typed = "out" in given and isinstance(given["out"].value, str)
    path = Path(absolute(given["out"].value)) if typed else default_out(checkpoint)
    if not typed and path.parent.is_symlink():
        raise UsageError(f"{path.parent} is a link to {path.parent.resolve()}; give out=FILE")
    shown = given["out"].shown if typed else path
    if path.is_dir():
        raise UsageError(f"out={shown} is a folder; give a file: out={path / 'backbone'}{SUFFIX}")
    if path.suffix != SUFFIX:
        raise UsageError(f"out={shown}: export writes {SUFFIX} files; out={path.stem}{SUFFIX}")
    if path.exists():
        raise UsageError(f"out={shown} is there already; give out= another name, or remove it")
    return path


def default_out(checkpoint: Path) -> Path:
    """``export/backbone.safetensors`` in the run folder; beside a checkpoint that is in none.

    Of a checkpoint other than the best: ``export/backbone_last.safetensors``.
    """
    if checkpoint.is_dir():
        inside = checkpoint.name == "checkpoints"
        return (checkpoint.parent if inside else checkpoint) / "export" / f"backbone{SUFFIX}"
    if checkpoint.parent.name != "checkpoints":
        return checkpoint.with_name(f"{checkpoint.stem}_backbone{SUFFIX}")
    name = "backbone" if checkpoint.stem == "best" else f"backbone_{checkpoint.stem}"
    return checkpoint.parents[1] / "export" / f"{name}{SUFFIX}"

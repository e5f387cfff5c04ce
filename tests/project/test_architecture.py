"""The arrows between the folders, and what the repository promises of itself."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cvtrain"

# Floors from the ground up: a folder or module imports of those below it, never of one beside or
# above it. What stands in one tuple does not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("distributed", "errors", "signals", "text", "version"),
    ("failures", "lock", "outside", "shipped", "storage", "streams", "structures", "terminal"),
    ("augment", "layers", "optim"),
    ("instantiate", "losses"),
    ("data", "models"),
    ("metrics", "proposals", "transfer"),
    ("config", "report", "tasks"),
    ("callbacks",),
    ("engine",),
    ("export", "sweep"),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
HEAVY = {"torch", "torchvision", "pytorch_lightning", "albumentations", "timm", "torchmetrics"}
HEAVY |= {"matplotlib", "wandb", "cv2", "sklearn", "scipy", "skimage"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names of all modules a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    """The folder of cvtrain, or the module at its top, that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def arrows() -> set[tuple[str, str]]:
    """``(part, part that it imports)``."""
    found = {
        (part_of(file), name.split(".")[1])
        for file in MODULES
        for name in imports(file)
        if name.startswith("cvtrain.")
    }
    return {(a, b) for a, b in found if a != b}


def test_every_part_stands_on_a_floor() -> None:
    assert {part_of(f) for f in MODULES} == {part for floor in FLOORS for part in floor}


def test_arrows_go_down() -> None:
    level = {part: number for number, floor in enumerate(FLOORS) for part in floor}
    assert {(a, b) for a, b in arrows() if level[b] >= level[a]} == set()


def test_models_know_neither_lightning_nor_hydra() -> None:
    folders = ("models", "layers", "losses")
    files = [f for f in MODULES if f.relative_to(PACKAGE).parts[0] in folders]
    banned = ("pytorch_lightning", "lightning", "hydra", "omegaconf", "albumentations")
    wrong = {(f.name, n) for f in files for n in imports(f) if n.split(".")[0] in banned}
    assert not wrong


def test_the_command_line_imports_nothing_heavy_at_module_level() -> None:
    files = [
        f
        for f in MODULES
        if f.relative_to(PACKAGE).parts[0]
        in ("cli", "commands", "config", "sweep", "instantiate.py", "outside.py", "shipped.py")
    ]
    files += [PACKAGE / "__init__.py", PACKAGE / "__main__.py", PACKAGE / "errors.py"]
    wrong = {
        (str(f.relative_to(ROOT)), n)
        for f in files
        for n in imports(f, top_level_only=True)
        if n.split(".")[0] in HEAVY
    }
    assert not wrong


def test_albumentations_stays_behind_augment() -> None:
    users = {
        str(f.relative_to(PACKAGE))
        for f in MODULES
        if any(n.split(".")[0] == "albumentations" for n in imports(f))
    }
    assert users
    assert {u for u in users if not u.startswith("augment/")} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 700
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 80, node.name


def test_every_yaml_says_what_its_values_do() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "conf").rglob("*.yaml"))
        if "#" not in path.read_text().replace("# @package _global_", "")
    ]
    assert not silent


def test_constraints_pin_every_dependency_and_name_no_host() -> None:
    text = (ROOT / ".ci/constraints.txt").read_text()
    assert "://" not in text
    pinned = {line.split("==")[0].lower() for line in text.splitlines() if "==" in line}
    assert {"torch", "torchvision", "pytorch-lightning", "hydra-core", "albumentations"} <= pinned


def test_no_lock_file_and_no_data_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = out.stdout.splitlines()
    assert "pyproject.toml" in tracked
    assert "uv.lock" not in tracked
    large = [f for f in tracked if (ROOT / f).is_file() and (ROOT / f).stat().st_size > 500_000]
    assert not large


def test_ci_workflow_runs_what_the_local_check_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert any(step.get("run") == "bash .ci/run" for step in steps)
    script = (ROOT / ".ci/run").read_text()
    assert [t for t in ("make check", "make test", "make test-slow") if t not in script] == []

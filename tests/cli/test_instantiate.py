"""Only known classes are built, judged by what a name resolves to."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path

import pytest
import yaml

from cvtrain.cli.conf import package_conf
from cvtrain.errors import UsageError
from cvtrain.instantiate import CLASSES, FUNCTIONS, instantiate, judge, resolve, targets


def test_nested_nodes_are_built_children_first() -> None:
    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4},
            {"_target_": "torch.nn.ReLU"},
        ],
    }
    built = instantiate(node)
    assert [type(m).__name__ for m in built] == ["Linear", "ReLU"]
    assert built[0].weight.shape == (4, 3)


def test_plain_trees_lists_none_and_top_keywords() -> None:
    assert instantiate(None) is None
    assert instantiate({"a": [1, {"b": 2}]}, c=3) == {"a": [1, {"b": 2}], "c": 3}
    node = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4}
    assert instantiate(node, out_features=5).out_features == 5


def test_partial_and_not_recursive() -> None:
    half = instantiate({"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 2})
    assert isinstance(half, functools.partial)
    assert half(out_features=3).weight.shape == (3, 2)
    inner = {"_target_": "torch.nn.ReLU"}
    node = {"_target_": "torch.nn.ModuleDict", "_recursive_": False, "modules": {"act": inner}}
    with pytest.raises(UsageError, match="ModuleDict"):  # a dict is not a module: it stayed plain
        instantiate(node)


def test_meta_keys_reach_only_a_target_that_names_them() -> None:
    node = {"_target_": "torch.nn.ReLU", "name": "relu", "year": 2010, "about": "x", "tasks": []}
    assert type(instantiate(node)).__name__ == "ReLU"
    logger = {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "x", "name": "mine"}
    assert instantiate(logger).name == "mine"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "numpy.load",
        "pickle.loads",
        "functools.partial",
        "torch.load",
        "torch.hub.load",
        "torch.serialization.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.modules.module.torch.hub.load",
        "torch.optim.optimizer.torch.load",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.modules.module.functools.partial",
        "torch.nn.Module.load_state_dict",
        "torch.nn.Linear.forward",
        "torch.utils.data.DataLoader",
        "torch.jit.load",
        "torch.Tensor",
        "torchvision.datasets.CIFAR10",
        "torchvision.io.write_file",
        "torchvision.models.resnet.partial",
        "timm.create_model",
        "timm.models.load_checkpoint",
        "albumentations.load",
        "albumentations.from_dict",
        "pytorch_lightning.Trainer",
        "cvtrain.instantiate.instantiate",
        "cvtrain.cli.main.main",
        "cvtrain.data.table.np.load",
        "cvtrain.data.public.prepare",
    ],
)
def test_refused(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        instantiate({"_target_": target})
    assert "\n" not in str(caught.value)
    assert target in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear.__init__",
        "cvtrain.__main__",
        "torch.nn.__builtins__.eval",
        "",
        "1",
        3,
        None,
    ],
)
def test_what_is_no_dotted_name_is_refused(target: object) -> None:
    with pytest.raises(UsageError, match="not the dotted name"):
        instantiate({"_target_": target})


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.OneCycleLR",
        "torch.nn.functional.cross_entropy",
        "torchvision.models.resnet18",
        "torchvision.ops.FrozenBatchNorm2d",
        "torchvision.transforms.v2.Resize",
        "timm.optim.Lamb",
        "timm.layers.DropPath",
        "torchmetrics.Accuracy",
        "albumentations.HorizontalFlip",
        "albumentations.Compose",
        "pytorch_lightning.callbacks.EarlyStopping",
        "pytorch_lightning.loggers.TensorBoardLogger",
    ],
)
def test_allowed(target: str) -> None:
    assert callable(resolve(target))


def test_the_whole_tree_is_judged_before_anything_is_built(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    package = tmp_path / "marking.py"
    package.write_text(
        "from pathlib import Path\n"
        f"class Mark:\n    def __init__(self): Path({str(mark)!r}).touch()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        bad = {"_target_": "os.system", "command": "true"}
        node = {"first": {"_target_": "marking.Mark"}, "later": [{"deep": bad}]}
        with pytest.raises(UsageError, match=r"later\[0\].deep._target_=os.system"):
            instantiate(node, trust=["marking"])
        assert not mark.exists()
        instantiate({"first": node["first"]}, trust=["marking"])
        assert mark.exists()
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("marking", None)


def test_an_unknown_package_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud_package.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"trust=\[loud_package\]"):
        instantiate({"_target_": "loud_package.Thing"})
    assert "loud_package" not in sys.modules


def test_a_trusted_package_does_not_open_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import os\nfrom subprocess import Popen\n"
    text += "class Mine:\n    pass\ndef make():\n    return 1\n"
    (tmp_path / "my_pkg.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert type(instantiate({"_target_": "my_pkg.Mine"}, trust=["my_pkg"])).__name__ == "Mine"
    assert instantiate({"_target_": "my_pkg.make"}, trust=["my_pkg"]) == 1
    for target in ("my_pkg.Popen", "my_pkg.os.system"):
        with pytest.raises(UsageError, match=r"is not among|only classes and functions"):
            instantiate({"_target_": target}, trust=["my_pkg"])
    with pytest.raises(UsageError, match=r"trust=\[my_pkg\]"):
        instantiate({"_target_": "my_pkg.Mine"}, trust=["my_pk"])


def test_an_object_that_claims_to_come_from_a_known_module_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class Fake:
        pass

    Fake.__module__, Fake.__qualname__ = "torch.nn.modules.linear", "Linear"
    monkeypatch.setattr(torch.nn, "FakeLinear", Fake, raising=False)
    with pytest.raises(UsageError):
        resolve("torch.nn.FakeLinear")


def test_wrong_arguments_are_one_line_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        instantiate({"head": {"_target_": "torch.nn.Linear", "in_feature": 3, "out_features": 4}})
    assert str(caught.value).startswith("head: Linear: ")
    assert "did you mean in_features?" in str(caught.value)
    with pytest.raises(UsageError, match=r"torch.nn has no Linaer; did you mean Linear"):
        instantiate({"_target_": "torch.nn.Linaer"})
    with pytest.raises(UsageError, match=r"Dropout: .*between 0 and 1"):
        instantiate({"_target_": "torch.nn.Dropout", "p": 7})


def test_an_argument_albumentations_does_not_know_is_an_error() -> None:
    with pytest.raises(UsageError, match="HorizontalFlip"):
        instantiate({"_target_": "albumentations.HorizontalFlip", "probability": 0.5})


def test_judge_and_targets() -> None:
    node = {"a": {"_target_": "torch.nn.ReLU"}, "b": [{"_target_": "torch.nn.Tanh"}]}
    assert list(targets(node)) == [("a", "torch.nn.ReLU"), ("b[0]", "torch.nn.Tanh")]
    judge(node)
    with pytest.raises(UsageError):
        judge({"c": {"_target_": "shutil.rmtree"}})


def test_every_target_that_ships_is_allowed() -> None:
    found = []
    for path in package_conf().rglob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        for where, target in targets(content):
            tasks = content["model"]["tasks"] if "${task.name}" in target else [""]
            for task in tasks:
                resolve(target.replace("${task.name}", task), path=f"{path.name}: {where}")
            found.append(target)
    assert len(set(found)) > 10


def test_the_lists_name_no_module_that_reaches_outside() -> None:
    for prefix in (*CLASSES, *FUNCTIONS):
        assert "." in prefix, f"{prefix}: a whole package is too much"
    assert not [p for p in FUNCTIONS if p.startswith(("timm", "albumentations"))]

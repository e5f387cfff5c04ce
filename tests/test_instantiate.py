"""What a configuration may build: by slot what our yamls name, transforms, what is trusted."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cvtrain.augment.known import ALBUMENTATIONS, NOT_TAKEN
from cvtrain.errors import UsageError
from cvtrain.instantiate import LIBRARIES, allowed, instantiate, judge, resolve
from cvtrain.shipped import SLOTS, shipped_targets, slot_of, targets

NN = ["torch.nn"]


def build(node: Any, where: str = "model", trust: list[str] = NN, **kwargs: Any) -> Any:
    return instantiate(node, where=where, trust=trust, **kwargs)


def test_nested_nodes_are_built_children_first() -> None:
    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4},
            {"_target_": "torch.nn.ReLU"},
        ],
    }
    built = build(node)
    assert [type(m).__name__ for m in built] == ["Linear", "ReLU"]
    assert built[0].weight.shape == (4, 3)


def test_plain_trees_lists_none_and_top_keywords() -> None:
    assert build(None) is None
    assert build({"a": [1, {"b": 2}]}, c=3) == {"a": [1, {"b": 2}], "c": 3}
    node = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4}
    assert build(node, out_features=5).out_features == 5


def test_partial_and_not_recursive() -> None:
    half = build({"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 2})
    assert isinstance(half, functools.partial)
    assert half(out_features=3).weight.shape == (3, 2)
    inner = {"_target_": "torch.nn.ReLU"}
    node = {"_target_": "torch.nn.ModuleDict", "_recursive_": False, "modules": {"act": inner}}
    with pytest.raises(UsageError, match="ModuleDict"):  # a dict is not a module: it stayed plain
        build(node)


def test_meta_keys_reach_only_a_target_that_names_them() -> None:
    node = {"_target_": "torch.nn.ReLU", "name": "relu", "year": 2010, "about": "x", "tasks": []}
    assert type(build(node)).__name__ == "ReLU"
    task = {"_target_": "cvtrain.callbacks.ema.EMA", "about": "x", "decay": 0.5}
    assert build(task, where="callbacks.ema", trust=[]).decay == 0.5


# What is refused --------------------------------------------------------------------------------

REFUSED = [
    *("os.system", "builtins.eval", "subprocess.Popen", "numpy.load", "pickle.loads"),
    *("functools.partial", "torch.load", "torch.hub.load", "torch.serialization.load"),
    *("torch.nn.modules.module.torch.load", "torch.nn.Module.load_state_dict", "torch.nn.Linear"),
    *("torch.nn.functional.cross_entropy", "torch.optim.AdamW", "torch.jit.load", "torch.Tensor"),
    "torchvision.models._api.WeightsEnum.get_state_dict",
    "torchvision.models._api.Weights",
    "torchvision.models.feature_extraction.create_feature_extractor",
    "torchvision.models._utils.IntermediateLayerGetter",
    *("torchvision.models.resnet18", "torchvision.io.write_file", "torchvision.ops.nms"),
    *("timm.create_model", "timm.models.load_checkpoint", "timm.optim.Lamb"),
    *("albumentations.load", "albumentations.from_dict", "albumentations.Lambda"),
    *("albumentations.TextImage", "albumentations.FDA", "albumentations.Compose"),
    *("pytorch_lightning.Trainer", "pytorch_lightning.callbacks.ModelCheckpoint"),
    *("pytorch_lightning.loggers.CSVLogger", "lightning_fabric.loggers.CSVLogger"),
    "cvtrain.models.backbones.fetch.fetch_file",
    *("cvtrain.instantiate.instantiate", "cvtrain.cli.main.main", "cvtrain.data.table.np.load"),
    "cvtrain.data.public.prepare",
]


@pytest.mark.parametrize("target", REFUSED)
def test_refused_in_every_slot(target: str) -> None:
    places = {
        **{slot: slot for slot in SLOTS if slot not in ("part", "reader")},
        "part": "model.head",
        "reader": "data.reader",
        "": "anything.else",
        "callbacks": "callbacks.x",
        "logger": "logger.x",
        "augment": "augment.transforms[0]",
    }
    for where in places.values():
        with pytest.raises(UsageError) as caught:
            instantiate({"_target_": target}, where=where)
        assert "\n" not in str(caught.value)
        assert f"{where}._target_={target}" in str(caught.value)


def test_a_target_belongs_to_its_slot() -> None:
    ema = {"_target_": "cvtrain.callbacks.ema.EMA"}
    reader = {"_target_": "cvtrain.data.formats.folder.FolderReader", "root": "."}
    flip = {"_target_": "albumentations.HorizontalFlip"}
    for node, where in ((ema, "model"), (reader, "loss"), (flip, "backbone"), (ema, "callbacks")):
        with pytest.raises(UsageError, match="not among"):
            instantiate(node, where=where)


@pytest.mark.parametrize(
    ("path", "slot"),
    [
        ("model", "model"),
        ("model.rpn", "part"),
        ("model.backbone", "part"),
        ("model.loss.parts.dice", "part"),
        ("loss.parts.dice", "loss"),
        ("data.reader", "reader"),
        ("data", ""),
        ("data.reader.root", ""),
        ("augment.weather.transforms[0].transforms[1]", "augment"),
        ("callbacks.ema", "callbacks"),
        ("callbacks", ""),
        ("callbacks.ema.decay", ""),
        ("logger.wandb", "logger"),
        ("backbone.options.act_layer", ""),
        ("trainer.profiler", ""),
        ("", ""),
    ],
)
def test_slots(path: str, slot: str) -> None:
    assert slot_of(path) == slot


@pytest.mark.parametrize(
    "target",
    [
        *("torch.nn.Linear.__init__", "cvtrain.__main__", "torch.nn.__builtins__.eval"),
        *("", "1", 3, None, ["os.system"]),
    ],
)
def test_what_is_no_dotted_name_is_refused(target: object) -> None:
    with pytest.raises(UsageError, match="not the dotted name"):
        build({"_target_": target})


def test_the_refusal_says_what_to_add() -> None:
    message = {
        "torch.nn.CrossEntropyLoss": "trust=[torch.nn.CrossEntropyLoss]",
        "my_pkg.Loss": "trust=[my_pkg]",
        "cvtrain.losses.focal.FocalLos": "did you mean cvtrain.losses.focal.FocalLoss?",
    }
    for target, remedy in message.items():
        with pytest.raises(UsageError) as caught:
            resolve(target, path="loss")
        assert remedy in str(caught.value)
    for target in ("torch.load", "os.system", "subprocess.Popen"):
        with pytest.raises(UsageError) as caught:
            resolve(target, path="loss")
        assert "trust" not in str(caught.value)
    with pytest.raises(UsageError, match=r"Lambda is not among .*: it runs functions"):
        resolve("albumentations.Lambda", path="augment.transforms[0]")
    assert resolve("torch.nn.CrossEntropyLoss", path="loss", trust=["torch.nn.CrossEntropyLoss"])


# The order in which a tree is judged and built ---------------------------------------------------


@pytest.fixture
def marking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package ``marking`` whose ``Mark()`` leaves the file that is returned."""
    mark = tmp_path / "ran"
    (tmp_path / "marking.py").write_text(
        "from pathlib import Path\n"
        f"class Mark:\n    def __init__(self): Path({str(mark)!r}).touch()\n"
        "class Holder:\n    def __init__(self, child): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "marking", raising=False)
    return mark


def test_the_whole_tree_is_judged_before_anything_is_built(marking: Path) -> None:
    bad = {"_target_": "os.system", "command": "true"}
    node = {"first": {"_target_": "marking.Mark"}, "later": [{"deep": bad}]}
    with pytest.raises(UsageError, match=r"model.later\[0\].deep._target_=os.system"):
        build(node, trust=["marking"])
    assert "marking" not in sys.modules
    build({"first": node["first"]}, trust=["marking"])
    assert marking.exists()


@pytest.mark.parametrize("arguments", [{"child": 1, "other": 2}, {"chidl": 1}, {}])
def test_arguments_are_bound_before_children_are_built(marking: Path, arguments: Any) -> None:
    mark = {"_target_": "marking.Mark"}
    node = {"_target_": "marking.Holder", **dict.fromkeys(arguments, mark)}
    for tree in (node, {"a": mark, "b": node}, [mark, node]):
        with pytest.raises(UsageError, match="Holder: "):
            build(tree, trust=["marking"])
    assert not marking.exists()


def test_an_unknown_package_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud_package.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"trust=\[loud_package\]"):
        build({"_target_": "loud_package.Thing"})
    assert "loud_package" not in sys.modules


def test_a_trusted_package_does_not_open_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import os\nfrom subprocess import Popen\n"
    text += "class Mine:\n    pass\ndef make():\n    return 1\n"
    (tmp_path / "my_pkg.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert type(build({"_target_": "my_pkg.Mine"}, trust=["my_pkg"])).__name__ == "Mine"
    assert build({"_target_": "my_pkg.make"}, trust=["my_pkg"]) == 1
    for target in ("my_pkg.Popen", "my_pkg.os.system"):
        with pytest.raises(UsageError, match=r"is not among|only classes and functions"):
            build({"_target_": target}, trust=["my_pkg"])
    with pytest.raises(UsageError, match=r"trust=\[my_pkg\]"):
        build({"_target_": "my_pkg.Mine"}, trust=["my_pk"])


def test_an_object_that_claims_to_come_from_a_known_module_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    class Fake:
        pass

    Fake.__module__, Fake.__qualname__ = "torch.nn.modules.linear", "Linear"
    monkeypatch.setattr(torch.nn, "FakeLinear", Fake, raising=False)
    with pytest.raises(UsageError, match="not among"):
        resolve("torch.nn.FakeLinear", path="model", trust=NN)


def test_wrong_arguments_are_one_line_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        build({"head": {"_target_": "torch.nn.Linear", "in_feature": 3, "out_features": 4}})
    assert str(caught.value).startswith("model.head: Linear: ")
    assert "did you mean in_features?" in str(caught.value)
    with pytest.raises(UsageError, match=r"torch.nn has no Linaer; did you mean Linear"):
        build({"_target_": "torch.nn.Linaer"})
    with pytest.raises(UsageError, match=r"Dropout: .*between 0 and 1"):
        build({"_target_": "torch.nn.Dropout", "p": 7})


def test_an_argument_albumentations_does_not_know_is_an_error() -> None:
    node = {"_target_": "albumentations.HorizontalFlip", "probability": 0.5}
    with pytest.raises(UsageError, match="HorizontalFlip"):
        build(node, where="augment.transforms[0]", trust=[])


def test_judge_and_targets() -> None:
    node = {"a": {"_target_": "torch.nn.ReLU"}, "b": [{"_target_": "torch.nn.Tanh"}]}
    assert list(targets(node)) == [("a", "torch.nn.ReLU"), ("b[0]", "torch.nn.Tanh")]
    judge(node, trust=NN)
    with pytest.raises(UsageError):
        judge({"c": {"_target_": "shutil.rmtree"}})


# The lists against what is installed --------------------------------------------------------------


def test_every_target_that_ships_is_there_and_a_class() -> None:
    places = {"part": "model.x", "reader": "data.reader", "callbacks": "callbacks.x"}
    places |= {"logger": "logger.x"}
    counts = Counter()
    for slot, names in shipped_targets().items():
        for name in names:
            found = resolve(name, path=places.get(slot, slot))
            assert isinstance(found, type), f"{slot}: {name} is a function"
            counts[slot] += 1
    assert counts["model"] >= 20
    assert counts["task"] == 6
    assert set(counts) == {*SLOTS} - {"optimizer"}


def test_the_lists_of_transforms_are_those_installed() -> None:
    import albumentations

    names = {name.partition(".")[2] for name in ALBUMENTATIONS}
    kinds = (albumentations.BasicTransform, albumentations.BaseCompose)
    there = {
        name
        for name, value in vars(albumentations).items()
        if isinstance(value, type) and issubclass(value, kinds)
    }
    assert names | set(NOT_TAKEN) == there
    assert not names & set(NOT_TAKEN)


def test_listed_transforms_take_plain_values_alone() -> None:
    doubtful = ("callable", "path", "file", "metadata", "reference", "url")
    found = {
        (name, parameter.name)
        for name in ALBUMENTATIONS
        for parameter in inspect.signature(
            resolve(name, path="augment.transforms[0]")
        ).parameters.values()
        if any(word in f"{parameter.name} {parameter.annotation}".lower() for word in doubtful)
    }
    # An array or a function, which no configuration holds and no slot lets one name.
    assert found == {("albumentations.Equalize", "mask")}


@pytest.mark.slow
def test_of_all_that_can_be_imported_the_lists_alone_pass() -> None:
    """Every class and function of the libraries and of cvtrain, tried in every slot."""
    script = Path(__file__).with_name("importable.py")
    done = subprocess.run(
        [sys.executable, str(script), *LIBRARIES], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"] > 40_000
    for slot in SLOTS:
        assert sorted(found["passed"][slot]) == sorted(allowed(slot)), slot
    assert found["passed"][""] == []

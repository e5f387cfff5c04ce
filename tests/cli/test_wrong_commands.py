"""A wrong command: exit code 2, one line, with what was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvtrain.config import aliases
from cvtrain.config.groups import GROUPS, ConfDirs, dotted_keys, load, package_conf

Cli = Callable[..., Any]

WRONG = [
    # unknown keys
    ("trainer.max_epoch=3", "trainer.max_epochs=3"),
    ("trainer.epochs=3", "trainer.max_epochs"),
    ("max_epochs=3", "trainer.max_epochs=3"),
    ("batch_size=4", "data.batch_size=4"),
    ("data.batchsize=4", "data.batch_size=4"),
    ("modle=yolo", "model=yolo"),
    ("sed=3", "seed=3"),
    ("grid=9 model=yolo", "model.grid=9"),
    ("optimiser.lr=0.1", "optimizer.lr=0.1"),
    ("model=yolo model.gird=9", "model.grid=9"),
    ("augment.transforms.0.scael=1", "augment.transforms.0.scale=1"),
    ("optimizer.momentum=0.5", "optimizer=sgd"),
    ("data.root=.", "data=auto | "),
    ("data=coco data.root=. data.num_train=3", "data=shapes"),
    ("callbacks=none callbacks.ema.decay=0.5", "callbacks=default"),
    ("logger=null logger.csv=1", "logger=null"),
    ("+trainer.foo=1", "trainer"),
    ("+foo=1", "foo"),
    ("xyzzy=1", "cvtrain --help"),
    # unknown options
    ("model=yolov1", "model=yolo"),
    ("model=YOLO", "model=yolo"),
    ("model=resnet50", "model=classifier backbone=resnet50"),
    ("model=yolo11n.pt", "backbone.weights=yolo11n.pt"),
    ("task=detect", "task=detection"),
    ("task=detecton", "task=detection"),
    ("backbone=resnet5O", "backbone=resnet50"),
    ("backbone=resnet-18", "backbone=resnet18"),
    ("backbone=resnet50.a1_in2k", "resnet50.a1_in1k"),
    ("backbone=timm backbone.name=convnext_tinny", "did you mean convnext_tiny, "),
    ("backbone=resnet26d backbone.name=resnet18", "both name a backbone"),
    ("optimizer=adam", "optimizer=torch optimizer.name=Adam"),
    ("optimizer=adamww", "optimizer=adamw"),
    ("optimizer=lbfgs", "several times a step"),
    ("optimizer=lionn", "no such optimizer"),
    ("optimizer=lamb", "write optimizer=timm optimizer.name=lamb"),
    ("optimizer=torch optimizer.name=AdmaW", "did you mean AdamW"),
    ("optimizer=torch optimizer.name=SparseAdam", "write optimizer=torch optimizer.name=Adam"),
    ("optimizer=timm optimizer.name=AdamV", "timm.optim has no such optimizer"),
    ("optimizer.library=keras", "it takes torch | timm"),
    ("scheduler=cosin", "did you mean scheduler=cosine?"),
    ("scheduler.name=cosin", "did you mean scheduler=cosine?"),
    ("+scheduler.gama=0.1", "cosine has no such key"),
    ("model=fcn model.backbone.name=resnt18", "did you mean backbone.name=resnt18?"),
    ("model=smp model.arch=fpnn", "did you mean model.arch=fpn?"),
    ("model=unet_encoder model.attention=sce", "did you mean model.attention=scse?"),
    ("model=fcn model.stride=4", "it takes 8 | 16 | 32"),
    ("model=overfeat backbone.version=fsat", "did you mean backbone.version=fast?"),
    ("loss=crossentropy", "loss=cross_entropy"),
    ("data=cocoo", "data=coco"),
    ("data=coco128.yaml", "data=yolo data.root="),
    ("data=~a", "there is no such data; for a folder write data=auto data.root=~a"),
    ("data=~/photos", "for a folder write data=auto data.root=~/photos"),
    ("model=~a", "there is no such model; see cvtrain list model"),
    ("data=folder data.root=~a", "data.root=~a: there is no such file or folder"),
    ("data=folder data.root=${x}", "data.root=${x}: there is no key x to take it from"),
    ("run_dir=${x}", "run_dir=${x}: there is no key x to take it from"),
    ("seed=12345678901234567890123", "it takes no number above 9223372036854775807"),
    ("data.batch_size=12345678901234567890123", "it takes no number above 2147483647"),
    ("eval ckpt=~a", "ckpt=~a: there is no such file or folder"),
    ("resume=~a", "resume=~a: there is no such file or folder"),
    ("data=/somewhere/photos", "data=auto data.root=/somewhere/photos"),
    ("logger=[csv,wandbb]", "logger=wandb"),
    # pairs that do not go together
    ("task=classification model=yolo", "model=classifier"),
    ("model=classifier task=detection", "| yolo"),
    ("task=semantic_segmentation model=yolo", "yolo serves detection"),
    ("model=yolo loss=focal", "loss=yolo"),
    ("loss=yolo", "loss=cross_entropy | focal"),
    ("loss=bce", "for classification there is loss=cross_entropy | focal"),
    ("task=multilabel_classification loss=focal", "there is loss=bce"),
    ("task=detection data.sampler=balanced", "leave data.sampler=shuffle"),
    (
        "task=detection loss.class_weights=auto",
        "loss=bce | boundary_weighted | cross_entropy | focal",
    ),
    ("check data=shapes data.sampler=balanced", "read by train, not by check"),
    ("eval data.sampler=balanced", "read by train, not by eval"),
    # values
    ("optimizer.lr=abc", "a number above 0"),
    ("optimizer.lr=-1", "a number above 0"),
    ("optimizer.lr=null", "a number above 0"),
    ("trainer.max_epochs=3.5", "an integer from 1"),
    ("trainer.max_epochs=0", "an integer from 1"),
    ("trainer.compile=yse", "true or false"),
    ("trainer.precision=fp16", "16-mixed"),
    ("trainer.accelerator=gpus", "trainer.accelerator=gpu"),
    ("trainer.devices=0", "a number of processes"),
    ("data.image_size=[64]", "[H, W]"),
    ("data.image_size=0", "an integer above 0"),
    ("data.batch_size=[4]", "an integer from 1"),
    ("data.on_bad=fxi", "data.on_bad=fix"),
    ("data.cache=disk", "none | ram"),
    ("data.num_workers=-1", "or null"),
    ("data.classes=star", "class names, each once: [cat, dog]"),
    ("data.classes=[star,circle,star]", "each once"),
    ("data.classes=[]", "each once"),
    ("data.train_per_class=0", "an integer from 1, or null"),
    ("task=detection data.train_per_class=20", "task=classification, not for detection"),
    ("eval data.train_per_class=20", "train, check and show, not by eval"),
    ("predict data.classes=[star]", "not read by predict"),
    ("data=folder data.root=. data.val_fraction=1.5", "a fraction"),
    ("data=folder data.root=. data.allow_empty=2", "true or false"),
    ("data=folder data.root=. data.check_boxes=none", "true or false"),
    ("model=yolo model.grid=abc", "an integer"),
    ("model=yolo model.nms_iou=high", "a number"),
    ("loss.label_smoothing=2", "from 0 to below 1"),
    ("loss.label_smoothing=1", "from 0 to below 1"),
    ("loss.class_weights=[0,0,0]", "at least one above 0"),
    ("model=overfeat model.merge=vote", "model.merge=vote: it takes greedy | nms"),
    ("model=overfeat model.merge=mns", "did you mean model.merge=nms?"),
    ("model=rt_detr model.eval_layers=0", "it takes an integer from 1, or null"),
    ("model=deconvnet data=shapes data.batch_size=1", "give data.batch_size=2 or more"),
    ("model=yolox model.size=xl", "it takes nano | tiny | s | m | l"),
    ("model=fcos backbone=csp_darknet backbone.size=big", "it takes nano | tiny | s | m | l"),
    ("loss.class_weights=balanced", "auto, effective, or a list of numbers from 0"),
    ("loss.class_weights=autp", "did you mean loss.class_weights=auto?"),
    ("loss.class_weights=[1,-2]", "a list of numbers from 0, one per class"),
    ("loss=focal loss.gamma=-1", "a number from 0"),
    ("data.sampler=balance", "did you mean data.sampler=balanced?"),
    ("task=multilabel", "write task=multilabel_classification"),
    ("class_weights=auto", "loss.class_weights=auto"),
    ("model=fcn loss.parts.dice.smooth=2", "is a key of loss=ce_dice, not of loss=cross_entropy"),
    ("seed=one", "an integer from 0"),
    ("trust=mypkg", "[mypkg]"),
    ("trust=[mypkg.nets]", "no module named 'mypkg'; install it or set PYTHONPATH"),
    ("show trust=[mypkg]", "trust=mypkg: no module named 'mypkg'"),
    ("-m trust=[mypkg] seed=1,2", "trust=mypkg: no module named 'mypkg'"),
    ("optimizer.betas=0.9", "a list"),
    ("callbacks.ema=0.9", "group of keys"),
    ("seed=1 seed=2", "given twice"),
    ("model=yolo model=classifier", "given twice"),
    ("data.image_size=[64,64", "bracket"),
    ("seed=1,2", "-m"),
    ("model=yolo,classifier", "-m"),
    ("+trainer.max_epochs=3", "write trainer.max_epochs=3"),
    ("model@foo=yolo", "omit @foo"),
    ("hydra.run.dir=x", "multirun"),
    # needs and paths
    ("data=coco", "data=coco needs data.root=FOLDER"),
    ("data=coco data.root=no_such", "no such file or folder"),
    ("data=coco data.root=photoes", "photos"),
    ("data=coco data.root=file.txt", "is a file"),
    ("data=voc2007", "data.download=true"),
    ("backbone.weights=w.pt", "no such file"),
    ("backbone.weights=", "backbone.weights=: it is empty; give a weights file or a run's folder"),
    ("model=faster_rcnn model.weights=''", "it is empty; give a weights file or a run's folder"),
    ("data=coco data.root=", "data.root=: it is empty; give the folder"),
    ("backbone.weights=photos", "photos: the folder holds no checkpoints/best.ckpt"),
    ("model=faster_rcnn model.weights=photos", "the folder holds no checkpoints/best.ckpt"),
    (
        "backbone.weights=file.txt backbone.pretrained=true",
        "backbone.pretrained=true and backbone.weights=FILE exclude each other: give one",
    ),
    (
        "model=faster_rcnn model.weights=file.txt model.pretrained=true",
        "model.pretrained=true and model.weights=FILE exclude each other: give one",
    ),
    (
        "model=faster_rcnn backbone=resnet50 backbone.pretrained=true model.pretrained=true",
        "model.pretrained=true brings the backbone's weights too: omit backbone.pretrained=true",
    ),
    ("run_dir=file.txt", "is a file"),
    # what a verb does not read
    ("data.val_fraction=0.5", "data.num_val"),
    ("task=detection data.object=only", "it is for task=localization"),
    ("show data.object=only", "it is for task=localization"),
    ("task=localization data.object=smallest", "largest | only"),
    ("ckpt=x", "eval, predict and export"),
    ("split=test", "eval"),
    ("source=x", "predict"),
    ("score_threshold=0.5", "predict"),
    ("sweep_dir=x", "-m"),
    ("check trainer.max_epochs=3", "train"),
    ("check data.batch_size=3", "check"),
    ("check optimizer=sgd", "train"),
    ("check augment=light", "train and show"),
    ("show trainer.max_epochs=3", "train"),
    ("show model=yolo model.grid=3", "train"),
    ("check ckpt=x", "eval, predict and export"),
    ("show sweep_dir=x", "multirun"),
    # words and flags
    ("trian", "train"),
    ("evaluate ckpt=x", "eval"),
    ("train eval", "one verb"),
    ("photos", "neither a verb"),
    ("predict cat.jpg ckpt=x", "source=cat.jpg"),
    ("yolo train", "model=yolo"),
    ("yolo train model=yolo", "omit it"),
    ("detect train", "task=detection"),
    ("fit model=yolo", "train"),
    ("--epochs 3", "trainer.max_epochs=3"),
    ("--epochs=3", "trainer.max_epochs=3"),
    ("--batch-size 8", "data.batch_size=8"),
    ("--data.root photos", "data.root=photos"),
    ("--lr 0.1 --epochs 3", "optimizer.lr=0.1"),
    ("--hepl", "--help"),
    ("--amp", "trainer.precision=bf16-mixed"),
    ("--unheard-of", "--unheard-of"),
    ("--cfg", "--cfg job"),
    ("--cfg all", "--cfg job"),
    ("--config-dir nowhere model=yolo", "no such folder"),
    ("--config-dir photos model=yolo", "model/mynet.yaml"),
    ("list modles", "list model"),
    ("list models data=coco", "filter="),
    ("list backbones filter=zzz", "zzz"),
    ("list models losses", "one group"),
    ("-sc install=powershell", "bash"),
    ("-m eval ckpt=a,b", "train"),
    ("-m model=yolo run_dir=x", "sweep_dir"),
    ("-m model=yolo seed=1 resume=x", "resume="),
    ("-m model=yolo,yollo", "model=yollo"),
    ("-m model=yolo optimizer.lr=0.1,abc", "optimizer.lr=abc"),
    ("-m model=yolo epochs=1,2", "trainer.max_epochs=1,2"),
]


@pytest.mark.parametrize(("command", "meant"), WRONG)
def test_wrong_command(cli: Cli, here: Path, command: str, meant: str) -> None:
    (here / "photos").mkdir()
    (here / "file.txt").touch()
    done = cli(command)
    assert done.code == 2, done.err
    assert done.verb is None
    assert meant in done.line
    assert len(done.line) < 400
    assert {p.name for p in here.iterdir()} == {"photos", "file.txt"}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("data.label_separator= ", "did you mean data.reader.label_separator=' '?"),
        ("data.label_separator='|'", """did you mean data.reader.label_separator="'|'"?"""),
        ("data.label_separator=$", "did you mean data.reader.label_separator='$'?"),
        ("data.label_separator=x", "did you mean data.reader.label_separator=x?"),
    ],
)
def test_a_suggestion_can_be_pasted_into_a_shell(cli: Cli, word: str, meant: str) -> None:
    line = cli("check", "task=multilabel_classification", "data=csv", "data.root=.", word).line
    assert meant in line


def test_a_blank_is_a_value(cli: Cli) -> None:
    words = ["check", "task=multilabel_classification", "data=csv", "data.root=."]
    done = cli(*words, "data.reader.label_separator= ")
    assert done.config["data"]["reader"]["label_separator"] == " "


HABITS = [
    ("epochs=3", "trainer.max_epochs=3"),
    ("batch=16", "data.batch_size=16"),
    ("imgsz=320", "data.image_size=320"),
    ("lr0=0.1", "optimizer.lr=0.1"),
    ("lr=0.1", "optimizer.lr=0.1"),
    ("device=cpu", "trainer.accelerator=cpu"),
    ("device=0", "trainer.accelerator=gpu"),
    ("device=0,1", "trainer.accelerator=gpu trainer.devices=2"),
    ("device=[0,1,2]", "trainer.accelerator=gpu trainer.devices=3"),
    ("device=cuda:1", "CUDA_VISIBLE_DEVICES=1"),
    ("workers=4", "data.num_workers=4"),
    ("weights=w.pt", "backbone.weights=w.pt"),
    ("pretrained=True", "backbone.pretrained=true"),
    ("pretrained=w.pt", "backbone.weights=w.pt"),
    ("project=a name=b", "run_dir=a/b"),
    ("name=b", "run_dir=runs/b"),
    ("mode=train", "cvtrain train"),
    ("mode=val", "cvtrain eval"),
    ("command=eval", "cvtrain eval"),
    ("patience=5", "callbacks.early_stopping.patience=5"),
    ("amp=False", "trainer.precision=32-true"),
    ("nc=3", "comes from the data"),
    ("classes=[star]", "data.classes=[star]"),
    ("output_dir=x", "run_dir=x"),
    ("dataset=coco", "data=coco"),
    ("arch=yolo", "model=yolo"),
    ("resume=true", "resume= takes the run's folder"),
]


@pytest.mark.parametrize(("command", "ours"), HABITS)
def test_habits_of_others(cli: Cli, command: str, ours: str) -> None:
    done = cli(command)
    assert done.code == 2
    assert ours in done.line


def test_several_habits_are_answered_at_once(cli: Cli) -> None:
    line = cli("model=yolo epochs=3 imgsz=64 batch=8").line
    assert "trainer.max_epochs=3 data.image_size=64 data.batch_size=8" in line


def test_what_habits_lead_to_exists() -> None:
    conf = ConfDirs()
    known = {*GROUPS, *load(package_conf() / "config.yaml")}
    for group in GROUPS:
        for option in conf.options(group):
            known |= set(dotted_keys({group: conf.node(group, option)}))
    for theirs, ours in aliases._RENAMED.items():
        assert ours in known, f"{theirs} -> {ours}"
        assert theirs not in known, f"{theirs} is a key of ours"
    for text in aliases.SWITCHES.values():
        assert text.partition("=")[0] in known


def test_weights_and_conf_are_ckpt_and_threshold_after_training(cli: Cli, here: Path) -> None:
    (here / "a.ckpt").touch()
    assert "ckpt=b.ckpt" in cli("eval ckpt=a.ckpt weights=b.ckpt").line
    line = cli("predict ckpt=a.ckpt source=. conf=0.4").line
    assert "score_threshold=0.4" in line


def test_a_yaml_of_the_users_that_is_broken_is_named(cli: Cli, here: Path) -> None:
    folder = here / "conf" / "model"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text("model:\n  - a: [\n")
    done = cli("--config-dir=conf model=broken")
    assert done.code == 2
    assert "broken.yaml" in done.line
    assert "line 3" in done.line


def test_an_interpolation_that_leads_nowhere_is_named(cli: Cli, here: Path) -> None:
    folder = here / "conf" / "model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\nmodel: {name: mine, tasks: [detection], width: '${model.wdth}'}\n"
    )
    done = cli("--config-dir=conf model=mine")
    assert done.code == 2
    assert "model.wdth" in done.line


def test_trust_comes_from_the_command_line_alone(cli: Cli, here: Path) -> None:
    folder = here / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "sly.yaml").write_text("# @package _global_\ntrust: [os]\n")
    done = cli("--config-dir=conf experiment=sly")
    assert done.code == 2
    assert "trust=[os]" in done.line
    (here / "mine.py").touch()
    assert cli("--config-dir=conf experiment=sly trust=[mine]").config["trust"] == ["mine"]


def test_out_of_range_values_of_a_yaml_are_refused_too(cli: Cli, here: Path) -> None:
    folder = here / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "odd.yaml").write_text("# @package _global_\ntrainer: {max_epochs: many}\n")
    done = cli("--config-dir=conf experiment=odd")
    assert done.code == 2
    assert "trainer.max_epochs=many" in done.line


def test_debug_shows_the_traceback(cli: Cli) -> None:
    done = cli("epochs=3 --debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.strip().splitlines()[-1].startswith("cvtrain: epochs=3")

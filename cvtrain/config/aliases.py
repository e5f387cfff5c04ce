"""What people used to other trainers type, and what it is called here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Their key -> our key, the value unchanged.
_KEYS = {
    "trainer.max_epochs": "epochs epoch num_epochs n_epochs max_epochs max_epoch",
    "data.batch_size": "batch batch_size batchsize bs b train_batch_size per_device_batch_size",
    "data.image_size": "imgsz img img_size image_size imagesize input_size img_sz size crop_size",
    "data.num_workers": "workers num_workers nw n_workers dataloader_num_workers j",
    "data.root": "root data_root data_dir data_path dataset_dir dataset_path data_folder",
    "data.val_fraction": "val_fraction val_split val_size validation_split",
    "data.cache": "cache",
    "data.on_bad": "on_bad",
    "data.channels": "channels in_channels in_chans",
    "data.classes": "classes class_names",
    "data": "dataset",
    "optimizer.lr": "lr lr0 learning_rate base_lr init_lr max_lr",
    "optimizer.weight_decay": "weight_decay wd decay",
    "optimizer.momentum": "momentum",
    "optimizer": "opt optim",
    "scheduler": "sched lr_scheduler lr_schedule",
    "scheduler.final": "lrf",
    "scheduler.warmup_epochs": "warmup warmup_epochs",
    "trainer.devices": "gpus ngpus num_gpus devices nproc n_gpus",
    "trainer.accelerator": "accelerator",
    "trainer.strategy": "strategy",
    "trainer.num_nodes": "nodes num_nodes nnodes",
    "trainer.precision": "precision dtype mixed_precision",
    "trainer.gradient_clip_val": "clip_grad grad_clip gradient_clip max_grad_norm clip",
    "trainer.accumulate_grad_batches": "accumulate accum grad_accum gradient_accumulation_steps",
    "trainer.compile": "compile",
    "trainer.deterministic": "deterministic",
    "trainer.max_minutes": "max_minutes",
    "callbacks.early_stopping.patience": "patience",
    "callbacks.ema.decay": "ema_decay",
    "run_dir": "output_dir out_dir save_dir log_dir work_dir exp_dir default_root_dir",
    "sweep_dir": "sweep",
    "model": "arch net network architecture",
    "seed": "random_seed manual_seed",
    "score_threshold": "conf conf_thres confidence score_thr threshold",
    "model.nms_iou": "iou iou_thres nms",
    "ckpt": "checkpoint ckpt_path checkpoint_path model_path",
    "source": "images image input",
    "augment": "aug augmentation transforms",
    "loss.label_smoothing": "label_smoothing smoothing",
    "loss.class_weights": "class_weights class_weight cls_weights pos_weight",
    "data.sampler": "sampler",
}
_RENAMED = {theirs: ours for ours, names in _KEYS.items() for theirs in names.split()}

SWITCHES = {
    "amp": "trainer.precision=bf16-mixed",
    "fp16": "trainer.precision=16-mixed",
    "half": "trainer.precision=16-mixed",
    "bf16": "trainer.precision=bf16-mixed",
    "ema": "callbacks.ema.decay=0.999",
    "pretrained": "backbone.pretrained=true",
    "resume": "resume=RUN_DIR",
    "cpu": "trainer.accelerator=cpu",
    "cuda": "trainer.accelerator=gpu",
    "wandb": "logger=wandb",
    "tensorboard": "logger=tensorboard",
    "cos_lr": "scheduler=cosine",
    "download": "data.download=true",
}
"""Flags others take without a value."""

_TASKS = {
    "classify": "classification",
    "multilabel": "multilabel_classification",
    "multi_label": "multilabel_classification",
    "cls": "classification",
    "detect": "detection",
    "det": "detection",
    "segment": "instance_segmentation",
    "seg": "instance_segmentation",
    "semantic": "semantic_segmentation",
    "instance": "instance_segmentation",
}
_VERBS = {"fit": "train", "val": "eval", "validate": "eval", "evaluate": "eval", "test": "eval"}
_VERBS |= {"convert": "export"}
_VERBS |= {"inference": "predict", "infer": "predict", "detect": "predict", "training": "train"}
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def replacement(key: str, value: str, verb: str = "train") -> str | None:
    """What ``key=value`` of another trainer is here, or None if it is nobody's habit.

    >>> replacement("epochs", "3")
    'trainer.max_epochs=3'
    """
    if key in _SPECIAL:
        return _SPECIAL[key](value, verb)
    if key in _RENAMED:
        return f"{_RENAMED[key]}={value}"
    return None


def _device(value: str, verb: str) -> str:
    """``0``, ``0,1``, ``cuda:1``, ``cpu``, ``mps``."""
    text = value.strip("[]'\" ").lower()
    if text in ("cpu", "mps", "tpu"):
        return f"trainer.accelerator={text}"
    chosen = [part.strip() for part in text.removeprefix("cuda").removeprefix("gpu").split(",")]
    indices = [part.removeprefix(":") for part in chosen if part.removeprefix(":")]
    if len(indices) > 1:
        return f"trainer.accelerator=gpu trainer.devices={len(indices)}"
    if indices and indices[0] not in ("0", "auto"):
        return f"trainer.accelerator=gpu, with CUDA_VISIBLE_DEVICES={indices[0]} before the command"
    return "trainer.accelerator=gpu"


def _weights(value: str, verb: str) -> str:
    return f"backbone.weights={value}" if verb == "train" else f"ckpt={value}"


def _pretrained(value: str, verb: str) -> str:
    if value.lower() in (*_TRUE, *_FALSE):
        return f"backbone.pretrained={'true' if value.lower() in _TRUE else 'false'}"
    return _weights(value, verb)


def _amp(value: str, verb: str) -> str:
    return f"trainer.precision={'32-true' if value.lower() in _FALSE else 'bf16-mixed'}"


def _half(value: str, verb: str) -> str:
    return f"trainer.precision={'32-true' if value.lower() in _FALSE else '16-mixed'}"


def _format(value: str, verb: str) -> str:
    what = "what=backbone, the one thing that export writes (as safetensors)"
    return what if verb == "export" else f"cvtrain export ckpt=RUN_DIR {what}"


def _output(value: str, verb: str) -> str:
    return f"out={value}" if verb == "export" else f"run_dir={value}"


def _mode(value: str, verb: str) -> str:
    return f"cvtrain {_VERBS.get(value, value)} ..., the verb as a word"


def _run_folder(value: str, verb: str) -> str:
    return f"run_dir=runs/{value}"


_SPECIAL: dict[str, Callable[[str, str], str]] = {
    "device": _device,
    "weights": _weights,
    "pretrained": _pretrained,
    "amp": _amp,
    "half": _half,
    "fp16": _half,
    "format": _format,
    **dict.fromkeys(("output", "out_file", "output_file", "filename"), _output),
    "mode": _mode,
    "command": _mode,
    "verb": _mode,
    "name": _run_folder,
    "project": lambda value, verb: f"run_dir={value}/NAME",
    "freeze": lambda value, verb: (
        "transfer=feature_extraction (fixes the whole backbone) or "
        "transfer=partial transfer.stages=N (all but its last N stages)"
    ),
    "cos_lr": lambda value, verb: "scheduler=cosine",
    "nc": lambda value, verb: "nothing: the number of classes comes from the data",
    "num_classes": lambda value, verb: "nothing: the number of classes comes from the data",
}


def both(typed: dict[str, str]) -> dict[str, str]:
    """Keys of others that make one of ours only together: ``project=a name=b``."""
    if "project" in typed and "name" in typed:
        return {
            "project": f"run_dir={typed['project']}/{typed['name']}",
            "name": f"run_dir={typed['project']}/{typed['name']}",
        }
    return {}


def words(typed: Sequence[str], overrides: Sequence[str], has_verb: bool) -> str | None:
    """``yolo detect train``, ``fit``, ``photo.jpg``: words that stand where none is taken."""
    keys = {o.partition("=")[0] for o in overrides}
    new = []
    for word in typed:
        if word in ("yolo", "cvtrain", "python"):
            if "model" not in keys and word == "yolo":
                new.append("model=yolo")
        elif word in _TASKS and (has_verb or word not in _VERBS):
            new.append(f"task={_TASKS[word]}")
        elif word in _VERBS:
            new.append(f"the verb {_VERBS[word]}")
        elif word.lower().endswith((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")):
            new.append(f"source={word}")
        elif word.lower().endswith((".ckpt", ".pt", ".pth", ".safetensors")):
            new.append(f"ckpt={word}")
        else:
            return None
    if not new:
        return f"{' '.join(typed)}: omit it; the command is cvtrain [VERB] key=value ..."
    return f"{' '.join(typed)} is not read here; write {', '.join(new)}"

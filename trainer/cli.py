"""`rfdetr-edge train`."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from rfdetr_edge.commands import Command
from rfdetr_edge.errors import InputError
from rfdetr_edge.variants import VARIANTS

# option, setting, type, help
_OPTIONS = (
    ("--model", "model", str, ", ".join(VARIANTS)),
    ("--dataset", "dataset_dir", str, "folder with train, valid and test in COCO or YOLO format"),
    ("--output", "output_dir", str, "folder for checkpoints and logs (default: output)"),
    ("--weights", "pretrain_weights", str, "file to start from, or none (default: published)"),
    ("--resume", "resume", str, "last.ckpt of a run to go on with, or last"),
    ("--epochs", "epochs", int, None),
    ("--batch-size", "batch_size", str, "images a step and device, or auto"),
    ("--lr", "lr", float, None),
    ("--resolution", "resolution", int, "side of the square input in pixels"),
    ("--device", "device", str, "cpu, cuda, cuda:1 or mps"),
    ("--devices", "devices", int, "how many of them"),
    ("--eval-interval", "eval_interval", int, "epochs between validations"),
    ("--num-workers", "num_workers", int, None),
    ("--seed", "seed", int, None),
    ("--notes", "notes", str, "free text that travels in every checkpoint"),
)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings as YAML; options below go before it"
    )
    for option, setting, kind, text in _OPTIONS:
        # one that is not given is not passed on: defaults are the file's, or TrainConfig's
        parser.add_argument(option, dest=setting, type=kind, help=text, default=argparse.SUPPRESS)
    text = "any other setting of trainer/config.py, such as ema_decay=0.999"
    parser.add_argument(
        "--set", dest="more", action="append", default=[], metavar="NAME=VALUE", help=text
    )


def _train(arguments: argparse.Namespace) -> int:
    from trainer.config import ModelConfig, model_config, train_config

    settings = _settings(vars(arguments))
    variant = str(settings.pop("model", ""))
    if variant not in VARIANTS:
        raise InputError(f"name a model with --model: {', '.join(VARIANTS)}; not {variant!r}")
    model = {
        name: settings.pop(name) for name in {*ModelConfig.model_fields} & {*settings} - {"variant"}
    }
    # before torch and Lightning, which take seconds to load
    model_config(variant, **model)
    train_config(VARIANTS[variant].task, **settings)
    from trainer.rfdetr import CLASSES

    first = os.environ.get("LOCAL_RANK", "0") == "0"  # Lightning starts the other processes so
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    for talker in ("pytorch_lightning", "lightning_fabric"):  # hardware lists and advertisements
        logging.getLogger(talker).setLevel(logging.WARNING)
    api = CLASSES[VARIANTS[variant].api_name](**model)
    best = api.train(**settings, device=model.get("device"))
    if first:
        print(best)
    return 0


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Of the file, the options, and --set; the later wins."""
    import yaml

    from rfdetr_edge.yaml_file import read_yaml

    settings = {"progress_bar": "tqdm" if sys.stderr.isatty() else None}
    settings |= {} if given["config"] is None else read_yaml(given["config"])
    settings |= {name: given[name] for _, name, *_ in _OPTIONS if name in given}
    for text in given["more"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, not {text!r}")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {name}: {value!r} is no YAML value") from None
    if str(settings.get("pretrain_weights", "")).lower() == "none":
        settings["pretrain_weights"] = None
    return settings


train = Command("train", "train a variant on a data set", _arguments, _train)

"""`rfdetr-edge train`."""

import argparse
import logging
import sys
from pathlib import Path

from rfdetr_edge.commands import Command
from rfdetr_edge.errors import InputError
from rfdetr_edge.variants import VARIANTS


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", dest="variant", choices=VARIANTS, default="tiny")
    parser.add_argument(
        "--dataset",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with train, valid and test, each with _annotations.coco.json and its images",
    )
    # Defaults are TrainConfig's: an option that is not given is not passed on.
    quiet = argparse.SUPPRESS
    parser.add_argument("--output", type=Path, metavar="DIR", default=quiet)
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", default=quiet, help="checkpoint to start from"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        default=quiet,
        help="last.ckpt of a run to go on with",
    )
    for name, kind, text in (
        ("--epochs", int, None),
        ("--batch-size", int, None),
        ("--lr", float, None),
        ("--weight-decay", float, None),
        ("--warmup-steps", int, None),
        ("--ema-decay", float, None),
        ("--resolution", int, "side of the square input in pixels"),
        ("--warm-resolution", int, "smaller side for the first part of the epochs"),
        ("--warm-fraction", float, "that part, 0 to 1"),
        ("--paste-probability", float, "share of images that get copied objects of rare classes"),
        ("--eval-interval", int, "epochs between validations"),
        ("--num-workers", int, None),
        ("--seed", int, None),
    ):
        parser.add_argument(name, type=kind, default=quiet, help=text)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=quiet)
    parser.add_argument("--antialias", action=argparse.BooleanOptionalAction, default=quiet)


def _train(arguments: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from trainer.config import TrainConfig

    settings = {
        name: value for name, value in vars(arguments).items() if name in TrainConfig.model_fields
    }
    try:
        config = TrainConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{place + ': ' if place else ''}{first['msg']}") from None
    # after the settings are checked: Lightning takes seconds to load
    from trainer.fit import fit

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for talker in ("pytorch_lightning", "lightning_fabric"):  # hardware lists and advertisements
        logging.getLogger(talker).setLevel(logging.WARNING)
    print(fit(config, progress=sys.stderr.isatty()))
    return 0


train = Command(
    name="train",
    help="train a variant on a COCO-format data set",
    add_arguments=_arguments,
    run=_train,
)

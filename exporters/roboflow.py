"""Handing a model to Roboflow: the bundle its package uploads, and the upload."""

import argparse
import os
import tempfile
from pathlib import Path

from rfdetr_edge.errors import BackendUnavailable, InputError
from rfdetr_edge.files import replacing
from trainer.checkpoint import file_weights, model_settings
from trainer.checkpoint_file import write_file
from trainer.inference import ModelContext


def write_bundle(context: ModelContext, folder: Path) -> None:
    """Writes weights.pt and class_names.txt (one name a line); the folder is made if need be.

    weights.pt holds `model`, the tensors under upstream's names, and `args`, a Namespace as in
    upstream's bundles, since that is what Roboflow's conversion reads: class_names and the shape.
    Raises OSError, PermissionError included, when they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = context.class_names
    args = argparse.Namespace(**model_settings(context.args, context.classes), class_names=names)
    with replacing(folder / "class_names.txt") as temporary:
        temporary.write_text("\n".join(names), encoding="utf-8", newline="\n")
    write_file(folder / "weights.pt", {"model": file_weights(context.model), "args": args})


def deploy(
    context: ModelContext,
    workspace: str,
    project_id: str,
    version: int | str,
    api_key: str | None,
    size: str | None,
) -> None:
    """Uploads a model to a version of a Roboflow project.

    api_key: None reads ROBOFLOW_API_KEY. size: Roboflow's name of the variant, as "rfdetr-nano".
    The package prints its progress, and asks on the terminal when the position table is that of
    another size. It prints why an upload failed, and does not raise then.
    Raises InputError without a key or size, or when Roboflow refuses key, project or version;
    BackendUnavailable without the `roboflow` package.
    """
    key = api_key or os.environ.get("ROBOFLOW_API_KEY")
    if not key:
        raise InputError("no API key: give api_key, or set ROBOFLOW_API_KEY")
    if size is None:
        raise InputError("Roboflow has no size for this variant; give one, such as 'rfdetr-nano'")
    try:
        # an optional extra
        from roboflow import Roboflow  # noqa: PLC0415
        from roboflow.adapters.rfapi import RoboflowError  # noqa: PLC0415
    except ImportError as error:
        raise BackendUnavailable(
            f"the roboflow package does not load ({error}): pip install 'rfdetr-edge[roboflow]'"
        ) from None
    with tempfile.TemporaryDirectory(prefix="roboflow_upload_") as folder:
        write_bundle(context, Path(folder))
        try:
            target = Roboflow(api_key=key).workspace(workspace).project(project_id).version(version)
            target.deploy(model_type=size, model_path=folder, filename="weights.pt")
        except (RoboflowError, RuntimeError, ValueError, OSError, EOFError) as error:
            reason = str(error).replace(key, "<key>")  # addresses in messages carry it
            raise InputError(f"Roboflow did not take the model: {reason}") from None

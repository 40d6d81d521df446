"""Settings from a YAML file, with errors that name it."""

from pathlib import Path
from typing import Any

import yaml

from rfdetr_edge.errors import InputError


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises InputError for a file that holds no mapping."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise InputError(f"{path} must map names of settings to values, one a line")
    return document

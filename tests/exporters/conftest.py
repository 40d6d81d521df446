"""Fixtures of the exporters' tests."""

from pathlib import Path

import pytest
from checkpoints import save_filled


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """`tiny` with three classes and a background slot."""
    folder = tmp_path_factory.mktemp("tiny")
    return save_filled(folder / "tiny.pth", "tiny", 4, ["RBC", "WBC", "Platelets"])

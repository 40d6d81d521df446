"""The commands that make and judge artifacts."""

from exporters.export_cli import export
from exporters.verify_cli import verify

__all__ = ["export", "verify"]

"""Upstream's ONNX file of a checkpoint, for benchmarks/against_peers.py; needs peer_env.sh's venv.

argv: checkpoint, and the folder that the file goes to.
"""

import sys

from rfdetr import from_checkpoint  # type: ignore[import-not-found]

if __name__ == "__main__":
    from_checkpoint(sys.argv[1]).export(output_dir=sys.argv[2], verbose=False)

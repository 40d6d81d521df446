#!/usr/bin/env bash
# Builds a venv that holds the upstream package (rfdetr, CPU torch) for side-by-side measurements only.
# usage: bash benchmarks/baselines/peer_env.sh [DIR]     default DIR: rfdetr-peer in the temporary folder (about 2 GB, two minutes)
# Afterwards: python -m benchmarks.train_step --peer DIR
# Holds the model, criterion, predict and export (no pytorch_lightning). Only benchmarks/baselines may run it, in a subprocess.
set -euo pipefail
dir=${1:-${TMPDIR:-/tmp}/rfdetr-peer}
py=${PYTHON:-python3}
"$py" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "needs Python 3.11 (the CPU build of torch)"; exit 1; }
[ -e "$dir/.ok" ] && { echo "already there: $dir"; exit 0; }
"$py" -m venv "$dir"
"$dir/bin/pip" install -q 'torch==2.13.0'                      # the CPU build for Python 3.11
"$dir/bin/pip" install -q --no-deps 'torchvision==0.28.0'      # its compiled ops do not load without CUDA ...
site=$("$dir/bin/python" -c 'import site; print(site.getsitepackages()[0])')
cat > "$site/_torchvision_ops.py" <<'PY'
"""Declares the two operators torchvision registers fakes for, so that it imports without its compiled ops."""
import importlib.abc
import sys


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules.setdefault("_torchvision_ops_keep", self)
        return None


sys.meta_path.insert(0, _Finder())
PY
echo 'import _torchvision_ops' > "$site/_torchvision_ops.pth"
"$dir/bin/pip" install -q 'torch==2.13.0' 'torchvision==0.28.0' 'rfdetr==1.11.2' onnx onnxruntime onnxsim onnx_graphsurgeon \
  polygraphy opencv-python-headless pycocotools
"$dir/bin/python" -c 'import torch, torchvision, rfdetr; print("peer ready:", torch.__version__, torchvision.__version__)'
touch "$dir/.ok"

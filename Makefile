# Every target sets up what it needs from nothing but a Python; venvs are renewed when the
# requirements change. PYTHON runs everything (3.11 or newer), PYTHON310 the oldest venv, PYTHON312
# that of onnx2tf.
PYTHON ?= python3
PYTHON310 ?= $(shell PYENV_VERSION=3.10.13 python3 -c 'import sys; \
	print(sys.executable if sys.version_info[:2] == (3, 10) else "python3.10")' 2>/dev/null || echo python3.10)
PYTHON312 ?= $(shell PYENV_VERSION=3.12.1 python3 -c 'import sys; \
	print(sys.executable if sys.version_info[:2] == (3, 12) else "python3.12")' 2>/dev/null || echo python3.12)

PIP := -m pip --disable-pip-version-check install --quiet

# A file at a time in each of two processes of one thread, which two cores run in half the time.
PYTEST := -m pytest -q --numprocesses 2 --dist loadfile
test-main test-oldest: export OMP_NUM_THREADS = 1

.PHONY: demo lint onnx2tf-venv test test-main test-oldest test-slow test-venvs

demo: .venv-demo/.stamp
	.venv-demo/bin/rfdetr-edge demo

lint: .venv-lint/.stamp
	.venv-lint/bin/ruff format --check
	.venv-lint/bin/ruff check
	.venv-lint/bin/mypy
	.venv-lint/bin/lint-imports --no-logo

test: test-main test-oldest

test-main: .venv/.stamp .venv-onnx2tf/.stamp
	.venv/bin/python $(PYTEST)

# The runtime alone, on the oldest Python and the oldest libraries it promises to work with. LiteRT
# and supervision need a newer NumPy.
test-oldest: .venv-oldest/.stamp
	.venv-oldest/bin/python $(PYTEST) --without ai_edge_litert --without supervision \
		tests/rfdetr_edge tests/contract tests/property

test-slow: .venv/.stamp .venv-onnx2tf/.stamp
	.venv/bin/python -m pytest -q -m slow

test-venvs: .venv/.stamp .venv-oldest/.stamp .venv-onnx2tf/.stamp

# For `rfdetr-edge export MODEL.onnx --format tflite`: its pins exclude ours, so it has none of ours.
onnx2tf-venv: .venv-onnx2tf/.stamp

# Not editable, so that the demo shows what users get: the files that the wheel holds.
.venv-demo/.stamp: pyproject.toml constraints.txt $(wildcard rfdetr_edge/*.py rfdetr_edge/backends/*.py rfdetr_edge/cuda/*.* rfdetr_edge/datasets/*.py rfdetr_edge/demo/*.* rfdetr_edge/demo/*/*.*)
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP) -c constraints.txt '.[onnx]'
	touch $@

.venv-lint/.stamp: constraints.txt
	test -x .venv-lint/bin/python || $(PYTHON) -m venv .venv-lint
	.venv-lint/bin/python $(PIP) -c constraints.txt ruff mypy import-linter numpy pydantic
	touch $@

.venv/.stamp: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) -c constraints.txt -e '.[train,roboflow,tflite-export,tensorrt-rtx,cuda,dev]'
	touch $@

.venv-oldest/.stamp: pyproject.toml constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(PYTHON310) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) -c constraints-oldest.txt -e '.[onnx,cuda,eval]' \
		onnx pillow pytest pytest-xdist hypothesis filelock tqdm
	touch $@

.venv-onnx2tf/.stamp: constraints-onnx2tf.txt
	test -x .venv-onnx2tf/bin/python || $(PYTHON312) -m venv .venv-onnx2tf
	.venv-onnx2tf/bin/python $(PIP) -c constraints-onnx2tf.txt onnx2tf
	touch $@

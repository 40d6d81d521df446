#!/bin/sh
# Builds pycuda from its source and installs it into the environment of a Python:
#
#     docs/build_pycuda.sh [PYTHON] [VERSION]      e.g.  docs/build_pycuda.sh venv/bin/python
#
# Needs a C++ compiler and the headers of the CUDA toolkit (CUDA_HOME, else /usr/local/cuda), and no
# GPU: `pip install pycuda` also wants cuRAND's headers and the driver's library to link against,
# which build machines and slim containers do not have. Takes one to three minutes.
set -eu

python=${1:-python3}
version=${2:-2026.1}
cuda=${CUDA_HOME:-/usr/local/cuda}
if [ ! -f "$cuda/include/cuda.h" ]; then
    echo "there is no $cuda/include/cuda.h; set CUDA_HOME to the CUDA toolkit" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An empty library in the driver's name. It is never run: all that the link takes from it is the
# name, so that the module loads the real libcuda.so.1 where there is one.
echo | cc -shared -fPIC -x c - -o "$work/libcuda.so" -Wl,-soname,libcuda.so.1

"$python" -m pip download --quiet --no-deps --no-binary pycuda --dest "$work" "pycuda==$version"
tar -xzf "$work/pycuda-$version.tar.gz" -C "$work"
cat >"$work/pycuda-$version/siteconf.py" <<CONF
CUDA_ROOT = "$cuda"
CUDA_ENABLE_CURAND = False
CUDA_ENABLE_GL = False
CUDADRV_LIB_DIR = ["$work"]
CONF

# Linkers that drop what they find no use for would drop the empty library.
LDFLAGS="-Wl,--no-as-needed ${LDFLAGS:-}" "$python" -m pip install --quiet "$work/pycuda-$version"
echo "pycuda $version is installed"

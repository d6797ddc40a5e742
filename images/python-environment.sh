#!/bin/sh
# Usage, in a Containerfile: sh python-environment.sh DIRECTORY LOCK_FILE [uv or pip options]
#
# Makes a virtual environment of Debian's Python with the packages of a hash lock, byte-compiled.
# Uses uv where the build offers it (`make images` does), else pip, which costs minutes.
set -eu
environment=$1 lock=$2
shift 2

python3 -m venv --without-pip "$environment"
if command -v uv > /dev/null; then
    # The image does not change after this: an import need not look at the sources again.
    PYC_INVALIDATION_MODE=UNCHECKED_HASH uv pip install --quiet --compile-bytecode \
        --python "$environment/bin/python" --require-hashes -r "$lock" "$@"
    exit
fi
apt-get update
apt-get install -y --no-install-recommends python3-pip
# --no-deps: a lock is complete, but Debian's pip takes an extra (connexion[flask]) for unlocked.
pip --python "$environment/bin/python" install --quiet --no-cache-dir --no-compile --no-deps \
    --require-hashes -r "$lock" "$@"
"$environment/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash \
    "$environment/lib" || true # some packages ship templates that are not Python
apt-get purge -y --auto-remove python3-pip
rm -rf /var/lib/apt/lists/*

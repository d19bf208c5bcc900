#!/usr/bin/env bash
# Sets up .venv on first use, then: train | predict | both | sample | test. Further arguments are Hydra overrides.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'END'
usage: ./run_bert4rec.sh train|predict|both [KEY=VALUE ...]   your data: data.data_dir=FOLDER data.data_file=FILE
       ./run_bert4rec.sh sample [KEY=VALUE ...]               the built-in sample data set, end to end
       ./run_bert4rec.sh test                                 lint, types and tests
PYTHON=python3.11 ./run_bert4rec.sh ... sets up with that Python.
END
}

# Installs what pyproject.toml asks for, at the versions this package is tested with; again whenever either changes.
setup() {
    local extra=$1 stamp wanted
    stamp=.venv/.installed$extra
    wanted=$(cat pyproject.toml .ci/constraints.txt | cksum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then return; fi
    echo "setting up .venv (once, a few minutes)"
    if [[ ! -x .venv/bin/python ]]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
            || { echo "error: Python 3.11 or newer is needed; name one with PYTHON=python3.11" >&2; exit 1; }
        "${PYTHON:-python3}" -m venv .venv
    fi
    # torch first: on Linux its constraint alone decides between the CPU build on hand and a CUDA build
    .venv/bin/python -m pip install --quiet --constraint .ci/constraints.txt torch
    .venv/bin/python -m pip install --quiet --constraint .ci/constraints.txt --editable ".$extra"
    echo "$wanted" >"$stamp"
}

if (($# == 0)); then usage >&2; exit 2; fi
command=$1
shift
case $command in
train | predict | both | sample)
    setup ""
    export RUN_BERT4REC=1 # the scripts then say ./run_bert4rec.sh in what they propose to run next
    ;;
test) setup "[dev]" ;;
-h | --help | help) usage; exit ;;
*) usage >&2; exit 2 ;;
esac

python=.venv/bin/python
case $command in
train) exec $python train_bert4rec.py "$@" ;;
predict) exec $python predict_bert4rec.py "$@" ;;
both)
    $python train_bert4rec.py "$@"
    exec $python predict_bert4rec.py "$@"
    ;;
sample)
    $python train_bert4rec.py experiment=sample "$@"
    exec $python predict_bert4rec.py experiment=sample "$@"
    ;;
test)
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    exec $python -m pytest -n 2 "$@"
    ;;
esac

#!/usr/bin/env bash
# Sets up .venv on first use, then: train | predict | both | sample | test. Further arguments are Hydra overrides.
set -euo pipefail
called=$0
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'END'
usage: ./run_bert4rec.sh train|predict|both [KEY=VALUE ...]   your data: data.data_dir=FOLDER data.data_file=FILE
       ./run_bert4rec.sh sample [KEY=VALUE ...]               the built-in sample data set, end to end
       ./run_bert4rec.sh test                                 lint, types and tests
PYTHON=python3.11 ./run_bert4rec.sh ... sets up with that Python; SYSTEM_PACKAGES=1 with its torch and other packages too.
END
}

fail() { echo "error: $*" >&2; exit 1; }

# Installs what pyproject.toml asks for, at the versions this package is tested with; again whenever either changes.
setup() {
    local extra=$1 stamp wanted
    stamp=.venv/.installed$extra
    wanted="$(cat pyproject.toml .ci/constraints.txt | cksum) $PWD" # a moved folder is installed anew
    if is_other_python; then
        echo ".venv is of another Python than PYTHON=$PYTHON: making it anew"
    elif [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    elif [[ -e .venv ]] && { ! .venv/bin/python -m pip --version || ! is_new_enough .venv/bin/python; } &>/dev/null; then
        echo ".venv does not work, it is half made, moved or of a Python that is gone: making it anew"
    elif [[ -e .venv ]]; then
        install "$extra"
        echo "$wanted" >"$stamp"
        return
    fi
    make_environment
    install "$extra"
    echo "$wanted" >"$stamp"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Whether PYTHON names one and .venv has another.
is_other_python() { [[ -n ${PYTHON:-} && -x .venv/bin/python && $(version_of "$PYTHON") != "$(version_of .venv/bin/python)" ]]; }

make_environment() {
    local python=${PYTHON:-python3} said
    if [[ -L .venv ]]; then fail ".venv is a link to $(readlink .venv): remove the link, or set that environment up"; fi
    command -v "$python" >/dev/null || fail "there is no $python: install Python 3.11 or newer, or name one with PYTHON=FILE"
    is_new_enough "$python" || fail "Python 3.11 or newer is needed; name one with PYTHON=python3.11"
    if ! said=$("$python" -m venv .venv --clear ${SYSTEM_PACKAGES:+--system-site-packages} 2>&1); then
        rm -rf .venv # half made, it would only be in the way
        case $said in
        *ensurepip* | *"No module named venv"*)
            fail "$python cannot make a virtual environment: install its module for that and run this again" \
                "(Debian, Ubuntu: sudo apt install python$(version_of "$python")-venv)" ;;
        *) fail "$python cannot make .venv in $PWD: ${said##*$'\n'}" ;;
        esac
    fi
}

install() {
    say_what_comes
    # torch first: on Linux its constraint alone decides between the CPU build on hand and a CUDA build
    pip torch && pip --editable ".$1" || fail "the installation did not finish, pip says why above: without a network" \
        "or without room on the disk? Run this again, it continues where it stopped"
}

pip() {
    local versions=.ci/constraints.txt
    if uses_system; then versions=/dev/null; fi # those that are there stay; pyproject.toml says which will do
    # Without bytecode of 16,000 modules, which takes a minute: those that are used get it on first use.
    .venv/bin/python -m pip install --disable-pip-version-check --no-compile --constraint "$versions" "$@"
}

# Types, and beside them the tests, which take longer; what is to say about types comes last.
types_and_tests() {
    local said types code=0
    said=$(mktemp)
    $python -m mypy >"$said" 2>&1 &
    types=$!
    trap "kill $types 2>/dev/null || true; rm -f '$said'" EXIT
    $python -m pytest -n 2 --dist worksteal "$@" || code=$?
    wait $types || code=$((code ? code : $?))
    cat "$said"
    exit "$code"
}

# Whether .venv was made with SYSTEM_PACKAGES=1.
uses_system() { grep -qs '^include-system-site-packages = true' .venv/pyvenv.cfg; }

# Before gigabytes are downloaded.
say_what_comes() {
    echo "setting up .venv (once, a few minutes)"
    if uses_system || [[ $(uname -s) != Linux ]] || compgen -G ".venv/lib/python*/site-packages/torch" >/dev/null; then return; fi
    if [[ -n ${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-} ]]; then
        echo "PyTorch comes from the package index in PIP_INDEX_URL or PIP_EXTRA_INDEX_URL"
        return
    fi
    echo "PyTorch for Linux usually comes with CUDA: a download of some 3 GB, 7 GB on the disk."
    echo "Without an NVIDIA GPU the CPU build does, 0.2 GB: stop with Ctrl-C and run"
    echo "  PIP_EXTRA_INDEX_URL=ADDRESS $called ...   with the address for \"CPU\" from pytorch.org, Get Started"
}

if (($# == 0)); then usage >&2; exit 2; fi
command=$1
shift
case $command in
train | predict | both | sample)
    setup ""
    export RUN_BERT4REC=$called # the scripts then say so in what they propose to run next
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
    $python -m ruff check .
    $python -m ruff format --check .
    types_and_tests "$@"
    ;;
esac

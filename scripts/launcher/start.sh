#!/bin/sh
# Finds a Python that can make the environment and hands the command to it: start.sh COMMAND [ARGUMENT...]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

for python in ${SCALELLM_PYTHON:-} "$root/.venv/bin/python" python3 python3.11 python3.12; do
    if fits "$python"; then
        PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -P -m scripts.launcher.bootstrap "$@"
    fi
done
echo "error: no Python 3.11 or 3.12 was found. Cure: install one (Debian, Ubuntu: apt install python3 python3-venv;" \
    "elsewhere: pyenv install 3.11) or give its path in SCALELLM_PYTHON" >&2
exit 2

#!/bin/sh
# Makes the virtual environment $VENV with $PYTHON, with whatever this machine has for that.
# Debian's bare python3 comes without pip and ensurepip; then an installed pip, virtualenv or uv will do.
set -eu
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	echo "evbatteryd needs Python 3.11 or newer, and '$PYTHON' is not. Install python3 (Debian 12 has 3.11)," \
		"or say: make PYTHON=/path/to/python3.11" >&2
	exit 1
fi
if "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null && "$PYTHON" -m venv "$VENV"; then
	exit 0
fi
rm -rf "$VENV"
if command -v uv >/dev/null 2>&1 && uv venv --quiet --seed --python "$PYTHON" "$VENV"; then
	exit 0
fi
if command -v virtualenv >/dev/null 2>&1 && virtualenv --quiet --python "$PYTHON" "$VENV"; then
	exit 0
fi
if "$PYTHON" -m pip --version >/dev/null 2>&1 && "$PYTHON" -m venv --without-pip "$VENV" &&
	"$PYTHON" -m pip --quiet --python "$VENV/bin/python" install pip; then
	exit 0
fi
rm -rf "$VENV"
echo "This Python can make no virtual environment (it lacks ensurepip). On Debian and Ubuntu:" >&2
echo "    sudo apt-get install python3-venv" >&2
echo "then run make again." >&2
exit 1

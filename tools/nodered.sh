#!/bin/sh
# Installs the Node-RED that runs our example in tests/foreign into $FOREIGN/nodered (.venv-foreign by default).
# Does nothing if it is there already.
# Needs Node.js 18.5 or newer, with npm. Nothing of it is shipped.
set -eu
version=4.1.15
cd "$(dirname "$0")/.."
folder=${FOREIGN:-.venv-foreign}/nodered
manifest=$folder/node_modules/node-red/package.json
if [ -f "$folder/.installed-$version" ] && [ -f "$manifest" ]; then
	exit 0
fi
if ! command -v npm >/dev/null 2>&1; then
	echo "Node-RED needs npm. On Debian and Ubuntu: sudo apt-get install npm" >&2
	exit 1
fi
echo "Installing Node-RED $version into $folder ..."
rm -rf "$folder"
mkdir -p "$folder"
# No install scripts: what they would compile is optional, and nobody's code runs by being fetched.
npm install --prefix "$folder" --ignore-scripts --omit=dev --no-audit --no-fund --no-update-notifier --loglevel=error \
	"node-red@$version"
touch "$folder/.installed-$version"

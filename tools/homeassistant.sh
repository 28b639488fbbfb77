#!/bin/sh
# Installs the Home Assistant that the tests run into $FOREIGN/homeassistant (.venv-foreign by default). Does nothing if
# it is there already. Needs no root, and changes nothing outside that folder.
#
# It takes a newer Python than Debian 12 has. So the packages of the next Debian are fetched from this machine's own
# mirror, unpacked, and run by the dynamic loader among them; on that Debian, too, so that there is one way to test.
#
# "tools/homeassistant.sh lock" renews tests/foreign/homeassistant.txt instead. Needs uv.
set -eu
cd "$(dirname "$0")/.."

release=trixie
python=python3.13
wanted=tests/foreign/homeassistant
foreign=${FOREIGN:-.venv-foreign}

fail() {
	echo "Home Assistant cannot be installed: $1" >&2
	exit 1
}

# The newest versions that this Home Assistant was tested with: its wheel says which.
lock() {
	scratch=$(mktemp -d)
	trap 'rm -rf "$scratch"' EXIT
	for_it="--quiet --python-version 3.13.5 --python-platform x86_64-manylinux_2_28 --only-binary :all:"
	# shellcheck disable=SC2086
	uv pip install $for_it --no-deps --target "$scratch" "$(grep '^homeassistant==' "$wanted.in")"
	grep '^[A-Za-z]' "$scratch/homeassistant/package_constraints.txt" |
		grep -v -e '^lru-dict==' -e '^uv==' >"$scratch/constraints.txt"
	# shellcheck disable=SC2086
	uv pip compile $for_it --upgrade --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--constraint "$scratch/constraints.txt" --override "$wanted-overrides.txt" "$wanted.in" -o "$wanted.txt"
}

# Where this machine gets its own release from.
mirror() {
	apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		sed -n "s/^$1 main //p" | head -n 1
}

# apt-get on an empty machine of that release.
apt_get() {
	command=$1
	shift
	apt-get -qq -o Dir::State="$debian/apt" -o Dir::State::status="$debian/apt/status" \
		-o Dir::Cache="$debian/apt/cache" -o Dir::Etc::sourcelist="$debian/apt/sources.list" \
		-o Dir::Etc::sourceparts=- -o Acquire::Languages=none -o APT::Sandbox::User="$(id -un)" \
		-o Debug::NoLocking=true "$command" "$@"
}

# Unpacks a Python that needs nothing of this machine but its kernel.
fetch_python() {
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "this is no Debian."
	from=$(mirror "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")")
	[ -n "$from" ] || fail "apt's sources do not say where this machine's own release comes from."
	echo "Fetching $python of Debian $release ..."
	rm -rf "$debian"
	mkdir -p "$debian/apt/lists/partial" "$debian/apt/cache/archives/partial" "$debian/root"
	: >"$debian/apt/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $release main" \
		>"$debian/apt/sources.list"
	apt_get update || fail "apt cannot read the list of $release's packages."
	apt_get install --yes --download-only --no-install-recommends "$python" python3-pip-whl libstdc++6 ||
		fail "apt cannot fetch $python of $release."
	for package in "$debian"/apt/cache/archives/*.deb; do
		dpkg-deb --extract "$package" "$debian/root"
	done
	rm -rf "$debian/apt"
	loader=$(echo "$debian"/root/usr/lib/*-linux-gnu*/ld-linux*.so.*)
}

# Runs it, under whatever name it is called by.
write_launcher() {
	cat >"$1" <<-SCRIPT
		#!/bin/sh
		exec "$loader" --library-path "$(dirname "$loader")" --argv0 "\$0" "$debian/root/usr/bin/$python" "\$@"
	SCRIPT
	chmod +x "$1"
}

# What "python -m venv" makes, with the launcher in place of a link to the program.
make_venv() {
	mkdir -p "$venv/bin" "$venv/lib/$python/site-packages"
	write_launcher "$venv/bin/python"
	printf 'home = %s\ninclude-system-site-packages = false\n' "$debian/root/usr/bin" >"$venv/pyvenv.cfg"
}

install() {
	rm -rf "$home"
	fetch_python
	make_venv
	echo "Installing Home Assistant and what it needs ..."
	"$venv/bin/python" "$(echo "$debian"/root/usr/share/python-wheels/pip-*.whl)/pip" \
		--disable-pip-version-check --quiet install --only-binary :all: --no-deps --require-hashes \
		--requirement "$wanted.txt" || fail "pip says why."
	cp "$wanted.txt" "$home/installed.txt"
}

if [ "${1:-}" = lock ]; then
	lock
	exit
fi
mkdir -p "$foreign"
home=$(cd "$foreign" && pwd)/homeassistant
debian=$home/debian
venv=$home/venv
cmp -s "$wanted.txt" "$home/installed.txt" || install

#!/usr/bin/env bash
# Installs what Baton needs on Debian 12. Sourced by quickstart.sh and test.sh, or run by hand:
#   tools/setup.sh [--tests]
# Does nothing where everything is there. On another system it prints the list and stops.
set -euo pipefail

# docs/dependencies.md says what each is for.
BATON_PACKAGES=(g++ cmake ninja-build ccache mold pkg-config ca-certificates curl python3 python3-pip libboost1.81-dev
  libcurl4-openssl-dev libssl-dev libedit-dev nlohmann-json3-dev libspdlog-dev libcli11-dev prometheus-cpp-dev libxxhash-dev
  libhwloc-dev libgloo-dev)
BATON_TEST_PACKAGES=(git libgtest-dev libgmock-dev clang-format-19 clang-19 libclang-rt-19-dev python3-venv)
BATON_CARGO_MINIMUM=87 # 1.87

baton_fail() { # step, remedy
  printf '\nerror in step "%s".\n  remedy: %s\n' "$1" "$2" >&2
  exit 1
}

baton_missing_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
  done
}

# Prints the cargo to use, if there is one that is new enough.
baton_find_cargo() {
  local candidate minor
  for candidate in "${CARGO:-}" cargo "$HOME/.cargo/bin/cargo" /usr/bin/cargo; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    minor=$("$candidate" --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')
    if [ -n "$minor" ] && [ "$minor" -ge "$BATON_CARGO_MINIMUM" ]; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

baton_setup() { # packages...
  if ! grep -qs '^VERSION_ID="12"' /etc/os-release || ! grep -qs '^ID=debian' /etc/os-release; then
    cat >&2 <<EOF
This script installs packages on Debian 12 only. On this system, install by hand:
  - a C++20 compiler (g++ 12 or newer), cmake 3.25, ninja, pkg-config, curl, python3 with pip; ccache and mold if you like
  - Rust: cargo 1.$BATON_CARGO_MINIMUM or newer
  - Boost 1.81 or newer, libcurl, OpenSSL 3, libedit, nlohmann-json 3.11, spdlog with fmt, CLI11 2.1, prometheus-cpp 1.0, xxHash 0.8,
    hwloc 2.5 or newer, gloo
  - for the tests: git, GoogleTest with GoogleMock, clang and clang-format 19 with libFuzzer
then: cmake --preset release && cmake --build build
EOF
    exit 1
  fi
  local missing cargo_packages=()
  baton_find_cargo >/dev/null || cargo_packages=(rustc-web cargo-web)
  missing=$(baton_missing_packages "$@" "${cargo_packages[@]}")
  [ -z "$missing" ] && return 0
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || baton_fail "install packages" "run as root, or install sudo; wanted: $missing"
    sudo=(sudo)
  fi
  echo "installing: $missing"
  # Interrupted installations of an earlier run would make every later one fail.
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive dpkg --configure -a >/dev/null 2>&1 || true
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 update ||
    baton_fail "update package lists" "check the network and /etc/apt/sources.list, then run this again"
  # shellcheck disable=SC2086
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    install -y --no-install-recommends $missing >/dev/null ||
    baton_fail "install packages" "read apt's message above; by hand: apt-get install $missing"
  baton_find_cargo >/dev/null || baton_fail "find cargo" "install cargo 1.$BATON_CARGO_MINIMUM or newer and set CARGO to it"
}

# The Python environment of the whole-program tests: build/venv.
baton_venv() { # packages...
  local python=build/venv/bin/python3 package missing=()
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    rm -rf build/venv
    python3 -m venv build/venv || baton_fail "create build/venv" "apt-get install python3-venv"
  fi
  for package in "$@"; do "$python" -c "import $package" 2>/dev/null || missing+=("$package"); done
  [ ${#missing[@]} = 0 ] || "$python" -m pip install --quiet --disable-pip-version-check "${missing[@]}" ||
    baton_fail "install ${missing[*]} into build/venv" "check the network; PIP_INDEX_URL names a mirror"
}

baton_build() { # preset, cmake arguments...
  local preset=$1
  shift
  CARGO=$(baton_find_cargo)
  export CARGO
  local log
  log=$(mktemp)
  cmake --preset "$preset" -DBATON_CARGO="$CARGO" "$@" >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    baton_fail "configure" "the message above names what is missing; tools/setup.sh installs it"
  }
  rm -f "$log"
  cmake --build --preset "$preset" ||
    baton_fail "build" "the first error above tells; rm -rf build and run this again if it was interrupted"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  packages=("${BATON_PACKAGES[@]}")
  [ "${1:-}" = --tests ] && packages+=("${BATON_TEST_PACKAGES[@]}")
  baton_setup "${packages[@]}"
  echo "everything is installed"
fi

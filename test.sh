#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every test; ends with ctest's summary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=tools/setup.sh
source tools/setup.sh

echo "== packages"
baton_setup "${BATON_PACKAGES[@]}" "${BATON_TEST_PACKAGES[@]}"
echo "== python environment"
baton_venv openai numpy
echo "== build"
baton_build release -DBATON_TESTS=ON
echo "== model"
build/baton pull smollm2-135m || baton_fail "fetch the model" "check the network, then run this again"
echo "== unit tests under AddressSanitizer and UBSan"
baton_build asan -DBATON_TESTS=ON
ctest --test-dir build-asan -L unit --output-on-failure -j 2
echo "== fuzz targets, each for a short time"
baton_build fuzz -DBATON_TESTS=ON
tests/fuzz/run.py --seconds 10
echo "== all tests"
ctest --test-dir build --output-on-failure -j 2

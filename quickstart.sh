#!/usr/bin/env bash
# From a bare Debian 12 to an answer: installs, builds, fetches the default model, starts one prefill worker, one decode worker and the
# gateway on port 8000, and sends one chat request through the hand-off. Run it as often as you like; only what is missing is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=tools/setup.sh
source tools/setup.sh

port=${BATON_PORT:-8000}
started=$SECONDS
step() { printf '\n== %s  (%d s)\n' "$1" $((SECONDS - started)); }

step "1/5 system packages"
baton_setup "${BATON_PACKAGES[@]}"

step "2/5 build"
baton_build release -DBATON_TESTS=OFF

step "3/5 model"
build/baton pull smollm2-135m ||
  baton_fail "fetch the model" "check the network, then run this again; the download goes on where it stopped"

step "4/5 server"
if build/baton status --port "$port" >/dev/null 2>&1; then
  echo "already running on port $port"
else
  build/baton serve smollm2-135m --prefill 1 --decode 1 --port "$port" --detach ||
    baton_fail "start the server" "the message above tells; another port: BATON_PORT=8001 ./quickstart.sh; this machine: build/baton doctor"
fi

step "5/5 one chat request through the hand-off"
build/baton check --port "$port" || baton_fail "check" "build/baton status --port $port, and the log that it names"

cat <<EOF

Ready after $((SECONDS - started)) s. The server goes on running on port $port. Next:
  build/baton chat --port $port                     talk to it
  curl http://127.0.0.1:$port/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages":[{"role":"user","content":"hello"}],"temperature":0.7}'
  build/baton status --port $port                   who serves, and how full they are
  build/baton bench serve --port $port --num-prompts 20
  build/baton stop --port $port
EOF

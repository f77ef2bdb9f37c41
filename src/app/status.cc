// `baton status` and `baton stop`.

#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/args.h"
#include "app/client_flags.h"
#include "app/commands.h"
#include "app/paths.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

// The record that `baton serve` keeps of itself, if its process still lives.
std::optional<Json> server_state(int port) {
  const auto text = read_text_file(state_file(port));
  if (!text.ok()) return std::nullopt;
  Json state = Json::parse(*text, nullptr, false);
  if (!state.is_object() || !state.contains("pid") || !state["pid"].is_number_integer()) return std::nullopt;
  // The record of a server that was killed stays behind, and its pid may be anyone's by now.
  const std::string started = process_started(state["pid"].get<int>());
  if (started.empty() || started != state.value("started", "")) return std::nullopt;
  return state;
}

void print_workers(const Json& workers) {
  fmt::print("{:<8} {:<8} {:<9} {:>2} {:>7} {:>7} {:>9} {:>9} {:>10} {:>10}\n", "WORKER", "ROLE", "STATE", "TP", "RUNNING", "WAITING",
             "KV USED", "KV TOTAL", "PROMPT TOK", "GEN TOK");
  for (const Json& w : workers) {
    const std::int64_t block = w.value("block_tokens", 0), total = w.value("blocks_total", 0);
    const std::int64_t used = total - w.value("blocks_free", 0) - w.value("blocks_cached", 0);
    fmt::print("{:<8} {:<8} {:<9} {:>2} {:>7} {:>7} {:>9} {:>9} {:>10} {:>10}\n", w.value("name", "?"), w.value("role", "?"),
               w.value("draining", false) ? "draining"
               : w.value("ready", false)  ? "ready"
                                          : "not ready",
               w.value("tensor_parallel_size", 1), w.value("running", 0), w.value("waiting", 0), used * block, total * block,
               w.value("prompt_tokens", 0), w.value("generation_tokens", 0));
  }
}

}  // namespace

int run_status(Args args) {
  ClientFlags client;
  bool json = false;
  CLI::App app("Shows who serves on a port, and how full the workers are. Exit code 1: nobody, or not ready.", "baton status");
  app.set_help_flag("-h,--help", "this text");
  client.add_to(app);
  app.add_flag("--json", json, "as JSON");
  if (const auto code = parse_args(app, std::move(args))) return *code;
  const auto state = client.base_url.empty() ? server_state(client.port) : std::nullopt;
  auto http = client.open();
  if (!http.ok()) return fail(http.status());
  const auto ready = http->get("/health/ready", std::chrono::seconds(2));
  if (!ready.ok()) return fail(ready.status().with_context(state ? "the server process lives but does not answer" : "no server"));
  const auto workers = http->get("/debug/workers", std::chrono::seconds(2));
  if (!workers.ok()) return fail(workers.status());
  const Json list = Json::parse(workers->body, nullptr, false);
  if (!list.is_array()) return fail(Status(Code::kInternal, "what answers there is not a Baton server"));
  const bool is_ready = ready->status == 200;
  const Json readiness = Json::parse(ready->body, nullptr, false);
  if (json) {
    Json out{{"url", client.url()}, {"ready", is_ready}, {"state", state ? *state : Json()}, {"workers", list}};
    fmt::print("{}\n", out.dump(2));
    return is_ready ? 0 : kExitFailed;
  }
  fmt::print("{}  {}", client.url(), is_ready ? "ready" : "not ready: " + (readiness.is_object() ? readiness.value("reason", "?") : "?"));
  if (state)
    fmt::print("  model {}  pid {}{}", state->value("model", "?"), state->value("pid", 0),
               state->value("log", "").empty() ? "" : "  log " + state->value("log", ""));
  fmt::print("\n");
  print_workers(list);
  return is_ready ? 0 : kExitFailed;
}

int run_stop(Args args) {
  int port = 8000;
  double timeout_s = 60;
  CLI::App app("Stops the server that `baton serve` started on a port: running requests finish first.", "baton stop");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("--port", port, "its port")->check(CLI::Range(1, 65535))->capture_default_str();
  app.add_option("--timeout", timeout_s, "seconds to wait before it is killed")->capture_default_str();
  if (const auto code = parse_args(app, std::move(args))) return *code;
  const auto state = server_state(port);
  if (!state) {
    unlink(state_file(port).c_str());
    fmt::print("no server runs on port {}\n", port);
    return 0;
  }
  const int pid = (*state)["pid"].get<int>();
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (pidfd < 0 || kill(pid, SIGTERM) != 0)
    return fail(Status(Code::kInternal, fmt::format("cannot signal process {}; is it yours?", pid)));
  net::EventLoop loop;
  bool ended = false;
  loop.on_readable(pidfd, [&] {
    ended = true;
    loop.stop();
  });
  loop.after(Duration(static_cast<std::int64_t>(timeout_s * 1e6)), [&] { loop.stop(); });
  loop.run();
  if (!ended) {
    kill(pid, SIGKILL);
    unlink(state_file(port).c_str());
    fmt::print("killed the server on port {} (pid {}): it did not stop within {:.0f} s\n", port, pid, timeout_s);
    return 0;
  }
  fmt::print("stopped the server on port {} (pid {})\n", port, pid);
  return 0;
}

}  // namespace baton::app

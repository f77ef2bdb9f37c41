#pragma once
// The gateway: a Generator over workers. A thin shell around Core: it polls the workers, speaks HTTP on the legs and runs timers; every
// decision is the core's. Everything, callbacks included, is on the executor's thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gateway/core.h"
#include "net/event_loop.h"
#include "net/http.h"
#include "wire/generate.h"

namespace baton::gateway {

struct GatewayOptions {
  std::vector<WorkerConfig> workers;  // a static registry; a worker may come up later, or never
  CoreOptions core;                   // fallback, requests_max, waits
  Duration poll_interval = std::chrono::milliseconds(200);
  Duration poll_timeout = std::chrono::milliseconds(500);  // two of them within the progress time-out
  // After a leg broke: the requests that were on the worker wait for this answer, if there is no other worker.
  Duration suspect_poll_timeout = std::chrono::milliseconds(500);
  Duration kv_timeout = std::chrono::seconds(1);  // of a worker, to say who holds its KV
  std::size_t line_bytes_max = 16u << 20;         // of one event from a worker (prompt log-probabilities are long); beyond, the leg is cut
};

class Gateway final : public wire::Generator {
 public:
  // Starts polling at once. `executor` and `client` must outlive the gateway; calls may outlive it and then do nothing.
  Gateway(net::Executor& executor, net::HttpClient& client, GatewayOptions options);
  ~Gateway() override;

  std::unique_ptr<wire::GenerateCall> generate(wire::GenerateRequest request, std::shared_ptr<wire::GenerateSink> sink) override;

  // nullopt if requests can be served (core.h); else what is wrong with whom.
  std::optional<std::string> not_ready() const;
  bool ready() const { return !not_ready(); }
  // Every configured worker, with its liveness and last status.
  const std::vector<Worker>& workers() const;
  Stats stats() const;
  // Monotonic counters under the names they have in /metrics (without `baton:` and `_total`).
  struct Counter {
    std::string name;
    std::uint64_t value = 0;
    std::vector<std::pair<std::string, std::string>> labels{};
  };
  std::vector<Counter> counters() const;
  // The JSON of /debug/requests/<id>: running requests and the last finished ones.
  std::optional<std::string> debug_request(const std::string& id) const;
  // The JSON of /debug/kv: asks every worker who holds its KV, and calls `done` once, about `kv_timeout` later at most, with what each said
  // or why it did not. Calls that come while one is under way get its answer; beyond kKvWaitersMax `done` is told nothing (nullopt) at
  // once.
  static constexpr std::size_t kKvWaitersMax = 64;
  using KvDone = std::function<void(std::optional<std::string> json)>;
  void debug_kv(KvDone done);
  std::size_t open_legs() const;  // connections of legs

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // calls hold it weakly
};

}  // namespace baton::gateway

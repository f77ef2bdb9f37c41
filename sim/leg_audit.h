#pragma once
// What a gateway sends to workers, seen from outside it: legs of one request agree about its deadline, each prefill is a new attempt, there
// are not more of them than the retry budget allows, and who drains gets nothing new and is not left before somebody else goes on.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/ids.h"
#include "gateway/registry.h"
#include "net/http.h"
#include "sim/audit.h"
#include "sim/host.h"
#include "wire/worker_api.h"

namespace baton::sim {

class LegAudit final : public net::HttpClient {
 public:
  // What the gateway believes of the worker at a host; null if nothing yet.
  using Beliefs = std::function<const gateway::Worker*(const std::string& host)>;
  // Prefills that begin for the same ids: the first, and as many retries as the gateway's two budgets allow.
  static constexpr int kPrefillsMax = 40;

  // `client` is the one that sends.
  LegAudit(Host& gateway, net::HttpClient& client, Beliefs beliefs, Failures& failures)
      : gateway_(gateway), client_(client), believes_(std::move(beliefs)), failures_(failures) {}
  std::unique_ptr<net::HttpCall> call(net::HttpClientRequest request, net::HttpClientCallbacks callbacks) override;
  // The gateway dies: that its legs end says nothing.
  void stop() { stopped_ = true; }

 private:
  struct DecodeLeg;  // one that is open
  class Watched;
  std::unique_ptr<net::HttpCall> watch(net::HttpClientRequest request, net::HttpClientCallbacks callbacks, const wire::GenerateRequest& of);
  void check_deadline(const wire::GenerateRequest& request);
  void check_attempt(const wire::PrefillLeg& leg);
  void check_placement(const std::string& host, const wire::GenerateRequest& request);
  void count_prefill(const std::string& id, std::size_t ids);
  void heard(DecodeLeg& leg, std::string_view data);
  void left(const DecodeLeg& leg);
  void fail(std::string_view invariant, const std::string& request, const std::string& what);

  Host& gateway_;
  net::HttpClient& client_;
  const Beliefs believes_;
  Failures& failures_;
  std::map<std::string, TimePoint> deadlines_;                // by the client's request, as its first leg had it
  std::map<std::string, Attempt> prefills_;                   // by the run's request: the last one sent
  std::map<std::string, std::pair<std::size_t, int>> begun_;  // by the run's request: ids, and prefills that began for so many
  std::map<std::uint64_t, const DecodeLeg*> open_;            // by number, in order of their beginning
  std::uint64_t legs_ = 0;
  bool stopped_ = false;
};

}  // namespace baton::sim

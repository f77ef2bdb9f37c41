#pragma once
// What a gateway sends to workers, seen from outside it: legs of one request agree about its deadline, and each prefill is a new attempt.

#include <map>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/ids.h"
#include "net/http.h"
#include "sim/audit.h"
#include "sim/host.h"
#include "wire/worker_api.h"

namespace baton::sim {

class LegAudit final : public net::HttpClient {
 public:
  // `client` is the one that sends.
  LegAudit(Host& gateway, net::HttpClient& client, Failures& failures) : gateway_(gateway), client_(client), failures_(failures) {}
  std::unique_ptr<net::HttpCall> call(net::HttpClientRequest request, net::HttpClientCallbacks callbacks) override;

 private:
  void check_deadline(const wire::GenerateRequest& request);
  void check_attempt(const wire::PrefillLeg& leg);

  Host& gateway_;
  net::HttpClient& client_;
  Failures& failures_;
  std::map<std::string, TimePoint> deadlines_;  // by the client's request, as its first leg had it
  std::map<std::string, Attempt> prefills_;     // by the run's request: the last one sent
};

}  // namespace baton::sim

#pragma once
// The answer to /debug/kv: asks every worker who holds its KV, and joins what they say. A worker that does not answer in time is its error;
// nobody waits for it longer. On the executor's thread.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "gateway/registry.h"
#include "net/event_loop.h"
#include "net/http.h"

namespace baton::gateway {

class KvSnapshot {
 public:
  using Done = std::function<void(const std::string& json)>;

  // Asks at once; `done` is called once, later, unless the snapshot is destroyed before. It may destroy the snapshot.
  KvSnapshot(net::Executor& executor, net::HttpClient& client, const std::vector<Worker>& workers, Duration timeout, Done done);
  ~KvSnapshot();
  KvSnapshot(const KvSnapshot&) = delete;
  KvSnapshot& operator=(const KvSnapshot&) = delete;

 private:
  struct Answer {
    std::string name, role, liveness;
    std::unique_ptr<net::HttpCall> call;  // while it is awaited
    int http_status = 0;
    std::string body, error;
  };
  void on_done(std::size_t index, const Status& status);
  void finish();
  std::string json() const;

  net::Executor& executor_;
  const Done done_;
  std::vector<Answer> answers_;
  std::size_t awaited_ = 0;
  net::Executor::TimerId timer_ = 0;
};

}  // namespace baton::gateway

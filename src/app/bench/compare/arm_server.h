#pragma once
// `baton serve` as a child of this process, from its start until it has stopped.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "app/bench/compare/incarnations.h"
#include "app/supervisor.h"
#include "base/status.h"
#include "net/event_loop.h"

namespace baton::app {

class ArmServer {
 public:
  // Returns when the server is ready, on a free port of loopback. What its processes say is appended to `log_path`. `args`: of `baton`,
  // without --host and --port. `interrupted` is asked often. kUnavailable has the reason why it is not ready, kDeadlineExceeded after
  // `limit`, kCancelled if interrupted; then nothing is left of it.
  static Result<std::unique_ptr<ArmServer>> start(std::vector<std::string> args, const std::string& log_path, Duration limit,
                                                  const std::function<bool()>& interrupted);
  ~ArmServer();  // kills what still runs
  ArmServer(const ArmServer&) = delete;
  ArmServer& operator=(const ArmServer&) = delete;

  int port() const { return port_; }
  // Which processes its workers are. Waits a while for one that is not ready; kUnavailable names it if that does not help.
  Result<Incarnations> workers();
  // How it has ended by itself, if it has; "" while it runs.
  std::string ended();
  // Tells it to end and returns when it has; kills it after `limit`.
  void stop(Duration limit);

 private:
  explicit ArmServer(std::string log_path) : log_path_(std::move(log_path)) {}
  Status launch(std::vector<std::string> args);
  void look_for_port();
  std::string last_error() const;
  // Runs the loop until `done`, which is looked at often, or `limit`.
  void run_until(const std::function<bool()>& done, Duration limit);

  net::EventLoop loop_;  // its own: what waits for the child is gone with it
  const std::string log_path_;
  std::size_t log_begin_ = 0;  // where the server's own lines begin
  int log_fd_ = -1, port_ = 0;
  std::unique_ptr<Supervisor> supervisor_;
  std::string ended_;
};

}  // namespace baton::app

#pragma once
// Child processes that never outlive their parent: each is restarted with back-off when it dies, and all end with the supervisor, also when
// it is killed (a lifetime pipe whose end they watch, and PDEATHSIG set in the child with the parent re-checked).

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "net/event_loop.h"

namespace baton::app {

struct ChildSpec {
  std::string name;
  std::vector<std::string> args;         // of this same program; "--lifetime-fd N" is added
  std::vector<int> fds;                  // to inherit, under the same numbers
  std::vector<std::string> environment;  // NAME=value, added
  int output_fd = -1;                    // instead of this process's stdout and stderr
};

// How long a child that ended by itself stays down. One that was asked to end from outside (SIGTERM: it exits with 0, or is killed by it if
// that came early) starts again at once: that is how workers are restarted one after another. One that crashes waits, twice as long each
// time.
class RestartPauses {
 public:
  // Who lived for `stable_after` has its crashes forgiven.
  Duration next(bool asked, Duration lived, Duration stable_after);

 private:
  static constexpr Duration kFirst = std::chrono::milliseconds(100);
  static constexpr Duration kLast = std::chrono::seconds(10);
  Duration pause_ = kFirst;
};

class Supervisor {
 public:
  struct Events {
    // A child ended by itself. `will_restart_in` < 0: it will not, because it failed before the group was ever ready.
    std::function<void(const std::string& name, const std::string& how, Duration will_restart_in)> on_exit;
    std::function<void(const std::string& name, int pid)> on_start;
  };
  // A child that lived for `stable_after` starts again with the first, short back-off.
  Supervisor(net::EventLoop& loop, std::vector<ChildSpec> children, Events events, Duration stable_after = std::chrono::seconds(30));
  ~Supervisor();

  Status start();
  // From now on a child that dies is always restarted.
  void mark_ready() { ready_ = true; }
  // SIGTERM to the children in the order given, each after the one before has ended (or `grace` has passed: SIGKILL); then `done`.
  void stop(Duration grace, std::function<void()> done);
  // SIGKILL to all, now.
  void kill_all();
  struct ChildState {
    std::string name;
    int pid = -1;
    int restarts = 0;
  };
  std::vector<ChildState> children() const;

 private:
  struct Child;
  Status spawn(Child& child);
  void on_child_exit(Child& child);
  void stop_next();

  net::EventLoop& loop_;
  Events events_;
  const Duration stable_after_;
  std::vector<std::unique_ptr<Child>> children_;
  int lifetime_pipe_[2] = {-1, -1};
  bool ready_ = false;
  bool stopping_ = false;
  Duration grace_{};
  std::size_t stop_index_ = 0;
  net::Executor::TimerId kill_timer_ = 0;
  std::function<void()> on_stopped_;
};

// In a child: exits the process when the supervisor's end of `fd` closes; call early.
void watch_lifetime(net::EventLoop& loop, int fd);

// A listening socket; kUnavailable with the address and the remedy if the port is taken. `port` 0: any; `actual_port` gets it.
Result<int> listen_socket(const std::string& host, int port, int* actual_port);

}  // namespace baton::app

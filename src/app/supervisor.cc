#include "app/supervisor.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace baton::app {
namespace {

std::string describe_exit(int status) {
  if (WIFSIGNALED(status)) return fmt::format("killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return fmt::format("exited with code {}", WEXITSTATUS(status));
}

bool asked_to_end(int status) { return WIFSIGNALED(status) ? WTERMSIG(status) == SIGTERM : WEXITSTATUS(status) == 0; }

}  // namespace

Duration RestartPauses::next(bool asked, Duration lived, Duration stable_after) {
  if (asked) return lived >= kFirst ? Duration(0) : kFirst;  // never a busy loop, whatever ends it
  if (lived > stable_after) pause_ = kFirst;
  return std::exchange(pause_, std::min(pause_ * 2, kLast));
}

struct Supervisor::Child {
  ChildSpec spec;
  int pid = -1;
  int pidfd = -1;
  int restarts = 0;
  TimePoint started{};
  RestartPauses pauses;
};

Supervisor::Supervisor(net::EventLoop& loop, std::vector<ChildSpec> children, Events events, Duration stable_after)
    : loop_(loop), events_(std::move(events)), stable_after_(stable_after) {
  for (ChildSpec& spec : children) {
    children_.push_back(std::make_unique<Child>());
    children_.back()->spec = std::move(spec);
  }
}

Supervisor::~Supervisor() {
  kill_all();
  for (const int fd : lifetime_pipe_)
    if (fd >= 0) close(fd);
}

Status Supervisor::start() {
  if (pipe2(lifetime_pipe_, O_CLOEXEC) != 0) return Status(Code::kInternal, fmt::format("cannot create a pipe: {}", std::strerror(errno)));
  for (const auto& child : children_) BATON_RETURN_IF_ERROR(spawn(*child));
  return {};
}

Status Supervisor::spawn(Child& child) {
  // Everything that allocates is done before fork: the child only calls what is safe there.
  std::vector<std::string> args = {"baton"};
  args.insert(args.end(), child.spec.args.begin(), child.spec.args.end());
  args.insert(args.end(), {"--lifetime-fd", std::to_string(lifetime_pipe_[0])});
  std::vector<char*> argv, envp;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  for (char** e = environ; *e; ++e) envp.push_back(*e);
  for (std::string& e : child.spec.environment) envp.push_back(e.data());
  envp.push_back(nullptr);
  std::vector<int> keep = child.spec.fds;
  keep.push_back(lifetime_pipe_[0]);
  const int parent = getpid();
  const int pid = fork();
  if (pid < 0) return Status(Code::kInternal, fmt::format("cannot start {}: {}", child.spec.name, std::strerror(errno)));
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    for (const int fd : keep) fcntl(fd, F_SETFD, 0);
    if (child.spec.output_fd >= 0) {
      dup2(child.spec.output_fd, 1);
      dup2(child.spec.output_fd, 2);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execve("/proc/self/exe", argv.data(), envp.data());
    _exit(127);
  }
  child.pid = pid;
  child.started = loop_.clock().now();
  child.pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (child.pidfd < 0) return Status(Code::kInternal, fmt::format("pidfd_open: {}; Linux 5.3 or newer is needed", std::strerror(errno)));
  fcntl(child.pidfd, F_SETFD, FD_CLOEXEC);
  loop_.on_readable(child.pidfd, [this, &child] { on_child_exit(child); });
  if (events_.on_start) events_.on_start(child.spec.name, pid);
  return {};
}

void Supervisor::on_child_exit(Child& child) {
  int status = 0;
  if (child.pid < 0 || waitpid(child.pid, &status, 0) != child.pid) return;
  close(child.pidfd);
  child.pid = child.pidfd = -1;
  if (stopping_) {
    if (children_[stop_index_].get() == &child) {
      loop_.cancel(kill_timer_);
      ++stop_index_;
      stop_next();
    }
    return;
  }
  if (!ready_) {
    if (events_.on_exit) events_.on_exit(child.spec.name, describe_exit(status), Duration(-1));
    return;
  }
  const Duration delay = child.pauses.next(asked_to_end(status), loop_.clock().now() - child.started, stable_after_);
  if (events_.on_exit) events_.on_exit(child.spec.name, describe_exit(status), delay);
  loop_.after(delay, [this, &child] {
    if (stopping_ || child.pid >= 0) return;
    ++child.restarts;
    if (const Status started = spawn(child); !started.ok() && events_.on_exit)
      events_.on_exit(child.spec.name, started.message(), Duration(-1));
  });
}

void Supervisor::stop(Duration grace, std::function<void()> done) {
  if (stopping_) return;
  stopping_ = true;
  grace_ = grace;
  on_stopped_ = std::move(done);
  stop_index_ = 0;
  stop_next();
}

void Supervisor::stop_next() {
  while (stop_index_ < children_.size() && children_[stop_index_]->pid < 0) ++stop_index_;
  if (stop_index_ == children_.size()) {
    if (on_stopped_) loop_.post(std::exchange(on_stopped_, {}));
    return;
  }
  const int pid = children_[stop_index_]->pid;
  kill(pid, SIGTERM);
  kill_timer_ = loop_.after(grace_, [pid] { kill(pid, SIGKILL); });
}

void Supervisor::kill_all() {
  stopping_ = true;
  for (const auto& child : children_)
    if (child->pid > 0) {
      kill(child->pid, SIGKILL);
      waitpid(child->pid, nullptr, 0);
      child->pid = -1;
    }
}

std::vector<Supervisor::ChildState> Supervisor::children() const {
  std::vector<ChildState> out;
  for (const auto& child : children_) out.push_back({child->spec.name, child->pid, child->restarts});
  return out;
}

void watch_lifetime(net::EventLoop& loop, int fd) {
  if (fd < 0) return;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  loop.on_readable(fd, [] { _exit(1); });
}

Result<int> listen_socket(const std::string& host, int port, int* actual_port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); error != 0)
    return Status(Code::kInvalidArgument, fmt::format("--host {}: {}", host, gai_strerror(error)));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> guard(found, freeaddrinfo);
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status(Code::kInternal, fmt::format("cannot create a socket: {}", std::strerror(errno)));
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 4096) != 0) {
    const int error = errno;
    close(fd);
    if (error == EADDRINUSE)
      return Status(
          Code::kUnavailable,
          fmt::format(
              "{}:{} is already in use; stop what listens there (ss -ltnp 'sport = :{}' names it; a Baton server: baton stop --port {}) "
              "or choose another port with --port",
              host, port, port, port));
    return Status(Code::kUnavailable, fmt::format("cannot listen on {}:{}: {}", host, port, std::strerror(error)));
  }
  if (actual_port) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
    *actual_port = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                                       : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  }
  return fd;
}

}  // namespace baton::app

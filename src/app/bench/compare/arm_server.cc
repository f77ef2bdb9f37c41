#include "app/bench/compare/arm_server.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "app/local_http.h"
#include "app/paths.h"

namespace baton::app {
namespace {

constexpr Duration kAnswer = std::chrono::seconds(10);
constexpr Duration kOften = std::chrono::milliseconds(20);
constexpr std::string_view kReady = "ready    after";  // of serve's lines
constexpr std::string_view kUrl = "http://127.0.0.1:";

}  // namespace

Result<std::unique_ptr<ArmServer>> ArmServer::start(std::vector<std::string> args, const std::string& log_path, Duration limit,
                                                    const std::function<bool()>& interrupted) {
  std::unique_ptr<ArmServer> server(new ArmServer(log_path));
  BATON_RETURN_IF_ERROR(server->launch(std::move(args)));
  server->run_until(
      [&] {
        server->look_for_port();
        return server->port_ > 0 || !server->ended_.empty() || interrupted();
      },
      limit);
  if (interrupted()) return Status(Code::kCancelled, "interrupted");
  if (!server->ended_.empty()) {
    const std::string why = server->last_error();
    return Status(
        Code::kUnavailable,
        fmt::format("{}; the log is {}", why.empty() ? fmt::format("baton serve {} while starting", server->ended_) : why, log_path));
  }
  if (server->port_ == 0)
    return Status(Code::kDeadlineExceeded, fmt::format("not ready after {:.0f} s; the log is {}", to_seconds(limit), log_path));
  return server;
}

ArmServer::~ArmServer() {
  supervisor_.reset();
  if (log_fd_ >= 0) close(log_fd_);
}

Status ArmServer::launch(std::vector<std::string> args) {
  log_fd_ = open(log_path_.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
  if (log_fd_ < 0) return Status(Code::kUnavailable, fmt::format("cannot write {}: {}", log_path_, std::strerror(errno)));
  struct stat about{};
  if (fstat(log_fd_, &about) == 0) log_begin_ = static_cast<std::size_t>(about.st_size);
  ChildSpec child;
  child.name = "serve";
  child.args = std::move(args);
  child.args.insert(child.args.end(), {"--host", "127.0.0.1", "--port", "0"});
  child.output_fd = log_fd_;
  // Never marked ready: a server that ends by itself ends the arm's run, and is not started again.
  supervisor_ =
      std::make_unique<Supervisor>(loop_, std::vector<ChildSpec>{std::move(child)},
                                   Supervisor::Events{[this](const std::string&, const std::string& how, Duration) { ended_ = how; }, {}});
  return supervisor_->start();
}

void ArmServer::look_for_port() {
  const auto log = read_text_file(log_path_);
  if (!log.ok() || log->size() < log_begin_) return;
  const std::size_t ready = log->find(kReady, log_begin_), url = log->find(kUrl, ready == std::string::npos ? log->size() : ready);
  if (url != std::string::npos && log->find('\n', url) != std::string::npos) port_ = std::atoi(log->c_str() + url + kUrl.size());
}

// The server's own words.
std::string ArmServer::last_error() const {
  const auto log = read_text_file(log_path_);
  if (!log.ok() || log->size() < log_begin_) return "";
  std::istringstream in(log->substr(log_begin_));
  constexpr std::string_view kError = "error: ";
  for (std::string line; std::getline(in, line);)  // the first is the cause
    if (const std::size_t at = line.find(kError); at != std::string::npos) return line.substr(at + kError.size());
  return "";
}

Result<Incarnations> ArmServer::workers() {
  BATON_ASSIGN_OR_RETURN(LocalHttp http, LocalHttp::open("127.0.0.1", port_));
  Result<HttpAnswer> answer = Status(Code::kUnavailable, "/debug/workers was not asked for");
  const auto all_ready = [&] {
    answer = http.get("/debug/workers", kAnswer);
    return answer.ok() && not_ready(answer->body).empty();
  };
  run_until(all_ready, kAnswer);
  if (!answer.ok()) return answer.status().with_context("/debug/workers");
  if (const std::string name = not_ready(answer->body); !name.empty())
    return Status(Code::kUnavailable, fmt::format("worker {} is not ready", name));
  Incarnations found = incarnations_of(answer->body);
  if (found.empty()) return Status(Code::kInternal, fmt::format("/debug/workers lists none (HTTP {})", answer->status));
  return found;
}

std::string ArmServer::ended() {
  run_until([&] { return !ended_.empty(); }, 2 * kOften);
  return ended_;
}

void ArmServer::stop(Duration limit) {
  const auto stopped = std::make_shared<bool>(false);
  supervisor_->stop(limit, [stopped] { *stopped = true; });
  run_until([&] { return *stopped; }, limit + std::chrono::seconds(5));
  supervisor_.reset();
}

void ArmServer::run_until(const std::function<bool()>& done, Duration limit) {
  const TimePoint until = loop_.clock().now() + limit;
  net::Executor::TimerId timer = 0;
  std::function<void()> look = [&] {
    if (done() || loop_.clock().now() >= until) return loop_.stop();
    timer = loop_.after(kOften, look);
  };
  timer = loop_.after(Duration(0), look);
  loop_.run();
  loop_.cancel(timer);
}

}  // namespace baton::app

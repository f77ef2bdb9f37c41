#include "device/gloo/meeting.h"

#include <fcntl.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/spin.h"
#include "device/gloo/tcp.h"

namespace baton::device::gloo {
namespace {

constexpr std::string_view kGreeting = "baton nodes 1";  // grows when what follows changes
constexpr std::size_t kHelloMax = 64 << 10, kSayingMax = 1 << 20;
constexpr Duration kHelloDeadline = std::chrono::seconds(5);  // a stranger who connects and says nothing
constexpr int kNodesMax = 1024;

DeadlineNs in(Duration time) { return now_ns() + time.count() * 1000; }
std::string ms(Duration time) { return std::to_string(time.count() / 1000) + " ms"; }

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::optional<int> number(const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// The greeting, how many nodes there are, this node's number, then a line for each term: its value.
std::string hello(const MeetingOptions& o) {
  std::string text = std::string(kGreeting) + "\n" + std::to_string(o.nodes) + "\n" + std::to_string(o.node) + "\n";
  for (const auto& [what, value] : o.terms) text += value + "\n";
  return text;
}

// Sayings one behind the other, each after its length.
std::string join(const std::vector<std::string>& sayings) {
  std::string text;
  for (const std::string& saying : sayings) text += std::to_string(saying.size()) + "\n" + saying;
  return text;
}

Result<std::vector<std::string>> part(std::string_view text, int nodes) {
  std::vector<std::string> sayings;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::optional<int> size = number(std::string(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!size || *size < 0 || static_cast<std::size_t>(*size) > text.size()) break;
    sayings.emplace_back(text.substr(0, static_cast<std::size_t>(*size)));
    text.remove_prefix(static_cast<std::size_t>(*size));
  }
  if (!text.empty() || std::ssize(sayings) != nodes) return Status(Code::kDataLoss, "node 0 sent what is none of ours");
  return sayings;
}

// Node 0: everybody's connection.
class Host final : public Meeting {
 public:
  explicit Host(const MeetingOptions& options)
      : options_(options), address_(options.host), guests_(static_cast<std::size_t>(options.nodes)) {}

  Status gather() {
    Socket listener(options_.listen_fd < 0 ? -1 : fcntl(options_.listen_fd, F_DUPFD_CLOEXEC, 0));
    if (!listener.open()) {
      BATON_ASSIGN_OR_RETURN(listener, Socket::listen(options_.host, options_.port));
    }
    address_ = listener.address();
    const DeadlineNs end = in(options_.deadline);
    while (!missing().empty()) {
      auto guest = listener.accept(end);
      if (guest.status().code() == Code::kDeadlineExceeded) {
        return refuse_all({Code::kDeadlineExceeded, "node " + missing() + " did not come to " + options_.host + ":" +
                                                        std::to_string(options_.port) + " within " + ms(options_.deadline) +
                                                        "; start it there with --node-rank and the same --master-addr"});
      }
      if (!guest.ok()) return guest.status();
      if (const Status seated = seat(std::move(*guest), end); !seated.ok()) return refuse_all(seated);
    }
    for (std::size_t n = 1; n < guests_.size(); ++n)
      BATON_RETURN_IF_ERROR(guests_[n].send_frame("welcome", in(kHelloDeadline)).with_context(name(n)));
    return {};
  }

  int node() const override { return 0; }
  int nodes() const override { return options_.nodes; }
  const std::string& address() const override { return address_; }

  Result<std::vector<std::string>> exchange(std::string_view own, Duration deadline) override {
    const DeadlineNs end = in(deadline);
    std::vector<std::string> sayings(guests_.size());
    sayings[0] = own;
    for (std::size_t n = 1; n < guests_.size(); ++n) {
      auto saying = guests_[n].receive_frame(kSayingMax, end);
      if (saying.status().code() == Code::kDeadlineExceeded)
        return Status(Code::kDeadlineExceeded, name(n) + " was not ready within " + ms(deadline) + "; its log says what it waits for");
      if (!saying.ok()) return Status(Code::kUnavailable, name(n) + " left; its log says why");
      sayings[n] = std::move(*saying);
    }
    const std::string all = join(sayings);
    for (std::size_t n = 1; n < guests_.size(); ++n)
      BATON_RETURN_IF_ERROR(guests_[n].send_frame(all, in(kHelloDeadline)).with_context(name(n)));
    return sayings;
  }

 private:
  static std::string name(std::size_t node) { return "node " + std::to_string(node); }

  // Those who came and left again are missing too.
  std::string missing() const {
    std::string names;
    for (std::size_t n = 1; n < guests_.size(); ++n)
      if (!guests_[n].open() || guests_[n].gone()) names += (names.empty() ? "" : ", ") + std::to_string(n);
    return names;
  }

  // An error is everybody's: the hosts do not fit together. Who is no node, or no node that is missing, is sent away.
  Status seat(Socket guest, DeadlineNs end) {
    const auto text = guest.receive_frame(kHelloMax, std::min(end, in(kHelloDeadline)));
    if (!text.ok()) return {};
    const std::vector<std::string> lines = lines_of(*text);
    if (lines.empty() || !lines[0].starts_with("baton nodes ")) return {};
    if (lines[0] != kGreeting || lines.size() != 3 + options_.terms.size())
      return mismatch(guest, {Code::kInvalidArgument, guest.peer_name() + " runs another version of Baton than node 0"});
    const std::optional<int> nodes = number(lines[1]), node = number(lines[2]);
    if (nodes != options_.nodes) {
      return mismatch(guest, {Code::kInvalidArgument, "node " + lines[2] + " (" + guest.peer_name() + ") was started with --nnodes " +
                                                          lines[1] + ", node 0 with --nnodes " + std::to_string(options_.nodes)});
    }
    if (!node || *node < 1 || *node >= options_.nodes) return send_away(guest, "there is no node " + lines[2]);
    for (std::size_t t = 0; t < options_.terms.size(); ++t) {
      const auto& [what, value] = options_.terms[t];
      if (lines[3 + t] == value) continue;
      return mismatch(guest, {Code::kInvalidArgument, what + " is " + lines[3 + t] + " on node " + lines[2] + " (" + guest.peer_name() +
                                                          ") and " + value + " on node 0; all nodes need the same"});
    }
    Socket& place = guests_[static_cast<std::size_t>(*node)];
    if (place.open() && !place.gone())
      return send_away(guest, "there is a node " + lines[2] + " already, at " + place.peer_name() + "; give each its own --node-rank");
    place = std::move(guest);
    return {};
  }

  static Status send_away(const Socket& guest, const std::string& why) {
    (void)guest.send_frame("unavailable\n" + why, in(kHelloDeadline));
    return {};
  }
  static Status mismatch(const Socket& guest, Status why) {
    (void)guest.send_frame(std::string(to_string(why.code())) + "\n" + why.message(), in(kHelloDeadline));
    return why;
  }
  Status refuse_all(Status why) {
    for (const Socket& guest : guests_)
      if (guest.open()) (void)mismatch(guest, why);
    return why;
  }

  const MeetingOptions options_;
  std::string address_;
  std::vector<Socket> guests_;  // by node; the first is not used
};

// Any other: its connection to node 0.
class Guest final : public Meeting {
 public:
  explicit Guest(const MeetingOptions& options) : options_(options) {}

  Status come() {
    const DeadlineNs end = in(options_.deadline);
    BATON_ASSIGN_OR_RETURN(host_, Socket::dial(options_.host, options_.port, end));
    address_ = host_.address();
    BATON_RETURN_IF_ERROR(host_.send_frame(hello(options_), end).with_context(name()));
    const auto answer = host_.receive_frame(kHelloMax, end);
    if (answer.status().code() == Code::kDeadlineExceeded)
      return {Code::kDeadlineExceeded,
              name() + " did not have all nodes together within " + ms(options_.deadline) + "; its log says whom it misses"};
    if (!answer.ok()) return answer.status().with_context(name() + ", before all nodes had come");
    if (*answer == "welcome") return {};
    const std::size_t code = std::min(answer->find('\n'), answer->size());
    return Status(code_from_string(answer->substr(0, code)), answer->substr(std::min(code + 1, answer->size())));
  }

  int node() const override { return options_.node; }
  int nodes() const override { return options_.nodes; }
  const std::string& address() const override { return address_; }

  Result<std::vector<std::string>> exchange(std::string_view own, Duration deadline) override {
    const DeadlineNs end = in(deadline);
    BATON_RETURN_IF_ERROR(host_.send_frame(own, end).with_context(name()));
    const auto all = host_.receive_frame(kSayingMax * static_cast<std::size_t>(options_.nodes), end);
    if (all.status().code() == Code::kDeadlineExceeded)
      return Status(Code::kDeadlineExceeded, "not all nodes were ready within " + ms(deadline) + "; the log of node 0 names them");
    if (!all.ok()) return Status(Code::kUnavailable, name() + " gave up; its log says why");
    return part(*all, options_.nodes);
  }

 private:
  std::string name() const { return "node 0 at " + options_.host + ":" + std::to_string(options_.port); }
  const MeetingOptions options_;
  std::string address_;
  Socket host_;
};

}  // namespace

Result<std::unique_ptr<Meeting>> Meeting::hold(const MeetingOptions& options) {
  if (options.nodes < 2 || options.nodes > kNodesMax || options.node < 0 || options.node >= options.nodes) {
    return Status(Code::kInvalidArgument, "--node-rank " + std::to_string(options.node) + " of --nnodes " + std::to_string(options.nodes) +
                                              ": give 2 to " + std::to_string(kNodesMax) + " nodes, and ranks from 0 to one less");
  }
  for (const auto& [what, value] : options.terms) BATON_CHECK_MSG(value.find('\n') == std::string::npos, what);
  if (options.node == 0) {
    auto host = std::make_unique<Host>(options);
    BATON_RETURN_IF_ERROR(host->gather());
    return std::unique_ptr<Meeting>(std::move(host));
  }
  auto guest = std::make_unique<Guest>(options);
  BATON_RETURN_IF_ERROR(guest->come());
  return std::unique_ptr<Meeting>(std::move(guest));
}

}  // namespace baton::device::gloo

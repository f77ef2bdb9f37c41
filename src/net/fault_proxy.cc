#include "net/fault_proxy.h"

#include <unistd.h>

#include <algorithm>
#include <deque>
#include <set>
#include <utility>

#include "base/rng.h"
#include "net/dial.h"
#include "net/listener.h"
#include "net/socket.h"

namespace baton::net {
namespace {

constexpr std::size_t kQueuedMax = 256u << 10;  // of one direction of one connection; beyond, reading pauses
constexpr std::int64_t kThrottledPieces = 50;   // a second: a slow path passes small pieces, not one large one late
constexpr Way kWays[] = {Way::kUp, Way::kDown};

constexpr std::size_t index(Way way) { return static_cast<std::size_t>(way); }

class Pair;

// What the connections of one proxy share.
struct ProxyCore {
  ProxyCore(EventLoop& l, FaultProxyOptions o) : loop(l), options(std::move(o)), rng(options.seed) {}
  EventLoop& loop;
  const FaultProxyOptions options;
  Rng rng;
  std::array<PathFaults, 2> faults;
  bool refusing = false;
  FaultProxy::Stats stats;
  std::set<std::shared_ptr<Pair>> pairs;

  const PathFaults& of(Way way) const { return faults[index(way)]; }
};

// One direction of one connection.
struct Pipe {
  struct Piece {
    TimePoint due{};
    std::string bytes;
    std::size_t sent = 0;
  };
  Socket* from = nullptr;
  Socket* to = nullptr;
  std::deque<Piece> queue;
  std::size_t queued = 0;  // bytes
  TimePoint last_due{};
  Executor::TimerId timer = 0;
  bool reading = false;  // a wait for input is pending
  bool blocked = false;  // a wait for room to send is pending
  bool ended = false;    // nothing more is read
  bool shut = false;     // the end was passed on
  bool lossy = false;    // something was swallowed
};

// Two sockets and the pipes between them. Waits hold it; it leaves the proxy's set when it closes.
class Pair final : public std::enable_shared_from_this<Pair> {
 public:
  Pair(ProxyCore& core, int fd) : core_(core), client_(core.loop, fd), loop_(core.loop) {}

  void start() {
    dial_ = Dial::start(loop_, core_.options.target_host, core_.options.target_port, core_.options.connect_timeout,
                        [weak = weak_from_this()](Result<std::unique_ptr<Socket>> socket) {
                          const auto self = weak.lock();
                          if (!self || !self->open_) return;
                          if (!socket.ok()) return self->close(true);
                          self->on_connected(std::move(*socket));
                        });
  }

  void close(bool reset) {
    if (!open_) return;
    open_ = false;
    if (dial_) dial_->cancel();
    for (Pipe& pipe : pipes_) loop_.cancel(pipe.timer);
    for (Socket* socket : {&client_, target_.get()}) {
      if (!socket) continue;
      if (reset) {
        socket->reset();
      } else {
        socket->close();
      }
    }
    --core_.stats.open;
    core_.pairs.erase(shared_from_this());
  }

  // After the faults of `way` were set from `before`.
  void faults_changed(Way way, const PathFaults& before) {
    if (!target_) return;
    Pipe& pipe = pipe_of(way);
    if (before.swallow && !core_.of(way).swallow && pipe.lossy) return close(true);
    // What waits is as late as the new faults make it, at most.
    const TimePoint latest = loop_.clock().now() + core_.of(way).delay + core_.of(way).jitter;
    if (core_.of(way).bytes_per_second == 0) {
      for (Pipe::Piece& piece : pipe.queue) piece.due = std::min(piece.due, latest);
      pipe.last_due = std::min(pipe.last_due, latest);
    }
    pump(way);
  }

  void half_close(Way way) {
    if (!target_) return;
    pipe_of(way).ended = true;
    pump(way);
  }

 private:
  Pipe& pipe_of(Way way) { return pipes_[index(way)]; }

  void on_connected(std::unique_ptr<Socket> socket) {
    target_ = std::move(socket);
    pipe_of(Way::kUp).from = pipe_of(Way::kDown).to = &client_;
    pipe_of(Way::kUp).to = pipe_of(Way::kDown).from = target_.get();
    for (const Way way : kWays) arm_read(way);
  }

  void arm_read(Way way) {
    Pipe& pipe = pipe_of(way);
    if (!open_ || pipe.reading || pipe.ended || core_.of(way).hold || pipe.queued >= kQueuedMax) return;
    pipe.reading = true;
    pipe.from->wait_read([self = shared_from_this(), way] {
      self->pipe_of(way).reading = false;
      if (self->open_) self->on_readable(way);
    });
  }

  void on_readable(Way way) {
    Pipe& pipe = pipe_of(way);
    const PathFaults& faults = core_.of(way);
    if (faults.hold || pipe.ended) return;
    std::size_t bytes_max = EventLoop::Impl::kScratchBytes;
    if (faults.bytes_per_second > 0)
      bytes_max = std::clamp(static_cast<std::size_t>(faults.bytes_per_second / kThrottledPieces), std::size_t{1}, bytes_max);
    char* const scratch = loop_.impl().scratch.get();
    const Io result = pipe.from->read(scratch, bytes_max);
    if (result.state == Io::kError) return close(true);
    pipe.ended = result.state == Io::kEof;
    pipe.lossy |= faults.swallow && result.state != Io::kBlocked;
    if (result.state == Io::kDone) take(way, {scratch, result.bytes});
    pump(way);
  }

  void take(Way way, std::string_view bytes) {
    Pipe& pipe = pipe_of(way);
    const PathFaults& faults = core_.of(way);
    FaultProxy::Stats::Path& stats = core_.stats.path[index(way)];
    stats.read += bytes.size();
    if (faults.swallow) {
      stats.swallowed += bytes.size();
      return;
    }
    const Duration jitter(
        faults.jitter.count() > 0 ? static_cast<std::int64_t>(core_.rng.below(static_cast<std::uint64_t>(faults.jitter.count()))) : 0);
    pipe.last_due = std::max(pipe.last_due, loop_.clock().now() + faults.delay + jitter);
    if (faults.bytes_per_second > 0)
      pipe.last_due += Duration(static_cast<std::int64_t>(bytes.size()) * 1'000'000 / faults.bytes_per_second);
    pipe.queue.push_back({pipe.last_due, std::string(bytes)});
    pipe.queued += bytes.size();
  }

  // Sends what is due, then the end if it has come, and goes on reading.
  void pump(Way way) {
    Pipe& pipe = pipe_of(way);
    while (open_ && !pipe.queue.empty() && !pipe.blocked) {
      Pipe::Piece& piece = pipe.queue.front();
      if (const Duration wait = piece.due - loop_.clock().now(); wait.count() > 0) {
        loop_.cancel(pipe.timer);
        pipe.timer = loop_.after(wait, [weak = weak_from_this(), way] {
          if (const auto self = weak.lock()) self->pump(way);
        });
        break;
      }
      const iovec part{piece.bytes.data() + piece.sent, piece.bytes.size() - piece.sent};
      const Io result = pipe.to->write({&part, 1});
      if (result.state == Io::kError) return close(true);
      if (result.state == Io::kBlocked) return wait_for_room(way);
      core_.stats.path[index(way)].passed += result.bytes;
      pipe.queued -= result.bytes;
      piece.sent += result.bytes;
      if (piece.sent == piece.bytes.size()) pipe.queue.pop_front();
    }
    if (!open_) return;
    if (pipe.ended && pipe.queue.empty() && !pipe.shut && !pipe.lossy) {
      pipe.shut = true;
      pipe.to->shutdown_send();
      if (pipes_[0].shut && pipes_[1].shut) return close(false);
    }
    arm_read(way);
  }

  void wait_for_room(Way way) {
    Pipe& pipe = pipe_of(way);
    pipe.blocked = true;
    pipe.to->wait_write([self = shared_from_this(), way] {
      self->pipe_of(way).blocked = false;
      if (self->open_) self->pump(way);
    });
  }

  ProxyCore& core_;  // valid while open_
  Socket client_;
  EventLoop& loop_;
  std::unique_ptr<Socket> target_;  // once connected
  std::shared_ptr<Dial> dial_;
  std::array<Pipe, 2> pipes_;
  bool open_ = true;
};

class FaultProxyImpl final : public FaultProxy {
 public:
  FaultProxyImpl(EventLoop& loop, FaultProxyOptions options) : core_(loop, std::move(options)) {}
  ~FaultProxyImpl() override {
    if (listener_) listener_->close();
    cut(true);
  }

  Status bind() {
    BATON_ASSIGN_OR_RETURN(listener_,
                           Listener::listen(core_.loop, core_.options.host, core_.options.port, -1, [this](int fd) { on_socket(fd); }));
    return {};
  }

  int port() const override { return listener_->port(); }
  void refuse(bool on) override { core_.refusing = on; }
  Stats stats() const override { return core_.stats; }

  void set(Way way, const PathFaults& faults) override {
    const PathFaults before = std::exchange(core_.faults[index(way)], faults);
    each([&](Pair& pair) { pair.faults_changed(way, before); });
  }
  void cut(bool reset) override {
    each([&](Pair& pair) { pair.close(reset); });
  }
  void half_close(Way way) override {
    each([&](Pair& pair) { pair.half_close(way); });
  }

 private:
  // Over a copy: a pair may leave the set meanwhile.
  template <class F>
  void each(F act) {
    for (const auto& pair : std::set(core_.pairs)) act(*pair);
  }

  void on_socket(int fd) {
    ++core_.stats.accepted;
    if (core_.refusing || core_.stats.open >= core_.options.connections_max) return Socket(core_.loop, fd).reset();
    ++core_.stats.open;
    (*core_.pairs.insert(std::make_shared<Pair>(core_, fd)).first)->start();
  }

  ProxyCore core_;
  std::shared_ptr<Listener> listener_;
};

}  // namespace

Result<std::unique_ptr<FaultProxy>> FaultProxy::listen(EventLoop& loop, FaultProxyOptions options) {
  auto proxy = std::make_unique<FaultProxyImpl>(loop, std::move(options));
  BATON_RETURN_IF_ERROR(proxy->bind());
  return std::unique_ptr<FaultProxy>(std::move(proxy));
}

}  // namespace baton::net

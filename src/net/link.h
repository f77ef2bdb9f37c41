#pragma once
// An ordered byte stream between two workers that may be cut, stalled or throttled: the seam over which the hand-off protocol runs. TCP
// here; the simulation supplies its own.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "net/event_loop.h"

namespace baton::net {

class Link {
 public:
  virtual ~Link() = default;  // closes
  struct Handlers {
    std::function<void(std::string_view bytes)> on_bytes;
    std::function<void(Status)> on_closed;  // once; not after close()
  };
  virtual void start(Handlers handlers) = 0;
  // Queues bytes; kResourceExhausted when `buffer_bytes_max` would be passed (the link is then of no use and should be closed).
  virtual Status send(std::string bytes) = 0;
  virtual void close() = 0;
  virtual std::string peer() const = 0;
};

struct TcpLinkOptions {
  std::size_t buffer_bytes_max = 16u << 20;
  Duration connect_timeout = std::chrono::seconds(2);
};
// `done` gets a connected link that is not started yet, or why not.
void connect_tcp(EventLoop& loop, const std::string& host, int port, TcpLinkOptions options,
                 std::function<void(Result<std::unique_ptr<Link>>)> done);

class TcpLinkListener {
 public:
  // `listen_fd` >= 0: an already listening socket; else host and port (0: any).
  static Result<std::unique_ptr<TcpLinkListener>> listen(EventLoop& loop, const std::string& host, int port, int listen_fd,
                                                         TcpLinkOptions options, std::function<void(std::unique_ptr<Link>)> on_link);
  virtual ~TcpLinkListener() = default;
  virtual int port() const = 0;
};

}  // namespace baton::net

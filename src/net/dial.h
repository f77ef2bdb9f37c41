#pragma once
// Opens TCP connections with a deadline. For net/*.cc only.

#include <functional>
#include <memory>
#include <string>

#include "net/socket.h"

namespace baton::net {

class Dial {
 public:
  using Done = std::function<void(Result<std::unique_ptr<Socket>>)>;
  // `done` runs once, later, unless cancelled: the socket, kUnavailable (with the address and why) or kDeadlineExceeded.
  static std::shared_ptr<Dial> start(EventLoop& loop, const std::string& host, int port, Duration timeout, Done done);
  virtual ~Dial() = default;
  virtual void cancel() = 0;
};

}  // namespace baton::net

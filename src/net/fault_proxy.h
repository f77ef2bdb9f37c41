#pragma once
// A TCP proxy that does to connections what networks do: late bytes, slow bytes, no bytes, a cut. For tests and `baton chaos`; every fault
// may be switched while connections run, and applies to those that run as to new ones.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "net/event_loop.h"

namespace baton::net {

// What happens to the bytes of one direction.
struct PathFaults {
  Duration delay{};                   // each byte comes this much later
  Duration jitter{};                  // and up to this much more, drawn for each read; bytes stay in order
  std::int64_t bytes_per_second = 0;  // 0: no limit
  bool hold = false;                  // nothing is read, so the sender comes to a stop; nothing is lost when it is lifted
  // Read and thrown away, an end too. A connection that lost something is reset when this is lifted, since TCP never goes on behind a gap.
  bool swallow = false;
  bool operator==(const PathFaults&) const = default;
};

enum class Way : std::uint8_t { kUp, kDown };  // from who connects to the target, and back

struct FaultProxyOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free one
  std::string target_host = "127.0.0.1";
  int target_port = 0;
  std::uint64_t seed = 0;  // of the jitter
  Duration connect_timeout = std::chrono::seconds(2);
  std::size_t connections_max = 4096;  // beyond: reset at once
};

class FaultProxy {
 public:
  // Binds at once. A target that cannot be reached resets the connection that asked for it.
  static Result<std::unique_ptr<FaultProxy>> listen(EventLoop& loop, FaultProxyOptions options);
  virtual ~FaultProxy() = default;  // closes every connection
  virtual int port() const = 0;

  virtual void set(Way way, const PathFaults& faults) = 0;
  // New connections are reset at once, as where nobody listens.
  virtual void refuse(bool on) = 0;
  // Ends every connection now; what was on its way is lost. `reset`: with RST, else with FIN.
  virtual void cut(bool reset) = 0;
  // Ends one direction of every connection behind what was read of it; the other goes on.
  virtual void half_close(Way way) = 0;

  struct Stats {
    std::size_t open = 0;        // connections
    std::uint64_t accepted = 0;  // ever
    struct Path {
      std::uint64_t read = 0, passed = 0, swallowed = 0;  // bytes
    };
    std::array<Path, 2> path;  // by Way
  };
  virtual Stats stats() const = 0;
};

}  // namespace baton::net

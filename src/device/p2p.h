#pragma once
// Direct device-to-device access between the KV pools of two processes, for devices that can map each other's memory. A device without it
// (a CPU: its pool is host memory, which the shm fabric maps) returns nullptr from Device::p2p().

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/kv_view.h"

namespace baton::device {

// Another process's pool, mapped read-only.
class PeerPool {
 public:
  virtual ~PeerPool() = default;
  struct Copy {
    std::int64_t source_offset;  // bytes in the peer's pool
    std::int64_t target_offset;  // bytes in the local pool
    std::int64_t bytes;
  };
  // Starts the copies on the local copy stream; `done` runs on a device thread when all bytes have arrived.
  virtual void fetch(KvPool& target, std::vector<Copy> copies, void (*done)(void* user, Status status), void* user) = 0;
};

class P2p {
 public:
  virtual ~P2p() = default;
  // An opaque handle that a named peer process may import.
  virtual Result<std::string> export_pool(KvPool& pool, std::int32_t importer_pid) = 0;
  virtual Result<std::unique_ptr<PeerPool>> import_pool(const std::string& handle, const KvView& view) = 0;
};

}  // namespace baton::device

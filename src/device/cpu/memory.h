#pragma once
// Memory of this machine and this process's share of it.

#include <cstddef>
#include <memory>
#include <string>

#include "base/status.h"
#include "device/types.h"

namespace baton::device::cpu {

// What this process may have in all, and what it could still get without swapping: the smaller of the machine's and its cgroup's figures.
std::size_t total_memory();
std::size_t available_memory();
std::string human_bytes(std::size_t bytes);  // "1.5 GiB"

// Host memory: owned pages, or an alias of somebody else's.
class CpuBuffer final : public Buffer {
 public:
  CpuBuffer() = default;
  CpuBuffer(void* data, std::size_t bytes) : data_(static_cast<std::byte*>(data)), bytes_(bytes) {}
  ~CpuBuffer() override;
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

  // Zeroed pages, in huge pages where the system gives them. kResourceExhausted names the bytes wanted and those available.
  static Result<std::unique_ptr<CpuBuffer>> allocate(std::size_t bytes);

  std::size_t bytes() const override { return bytes_; }
  std::byte* data() const { return data_; }
  // Makes an alias show something else.
  void point_to(void* data, std::size_t bytes);

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;
};

// The memory of a tensor whose elements lie one after the other.
std::byte* bytes_of(const Tensor& t);

}  // namespace baton::device::cpu

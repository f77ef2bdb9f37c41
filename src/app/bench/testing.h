#pragma once
// What the tests of benchmark data share.

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "text/test_vocab.h"

namespace baton::app {

// A data file that lives as long as this.
class DataFile {
 public:
  explicit DataFile(const std::string& text) {
    std::string pattern = (std::filesystem::temp_directory_path() / "baton-test-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
    std::ofstream(path()) << text;
  }
  ~DataFile() { std::filesystem::remove_all(folder_); }
  DataFile(const DataFile&) = delete;
  DataFile& operator=(const DataFile&) = delete;
  std::string path() const { return folder_ + "/data"; }

 private:
  std::string folder_;
};

// One token a byte, but for a few merges; ids 261 to 263 are special.
inline std::unique_ptr<text::Tokenizer> byte_tokenizer() {
  auto json = text::tokenizer_json_from_gguf(text::test_vocab("smollm"));
  BATON_CHECK_MSG(json.ok(), json.status().to_string());
  auto tokenizer = text::Tokenizer::from_json(*json);
  BATON_CHECK_MSG(tokenizer.ok(), tokenizer.status().to_string());
  return std::move(tokenizer).value();
}

}  // namespace baton::app

#pragma once
// A file mapped read-only. Private to model/.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace baton::model {

class MappedFile {
 public:
  // kNotFound / kInvalidArgument name the file and the system's reason. An empty file maps to size() == 0.
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// The whole of a small text file (config.json and the like); at most 64 MB.
Result<std::string> read_text_file(const std::string& path);

}  // namespace baton::model

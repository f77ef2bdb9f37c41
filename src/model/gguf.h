#pragma once
// GGUF files (versions 2 and 3), mapped, single or split (-00001-of-00003.gguf). Every length and offset is checked against the file before
// use; an error names the file and the field.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"
#include "device/types.h"
#include "model/mapped_file.h"

namespace baton::model {

struct GgufArray;
using GgufValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string, std::shared_ptr<GgufArray>>;
struct GgufArray {
  std::vector<std::string> strings;  // one of the four is filled
  std::vector<std::int64_t> integers;
  std::vector<double> floats;
  std::vector<bool> bools;
};

struct GgufTensor {
  std::string name;
  std::vector<std::int64_t> shape;  // outermost first: [rows, cols]
  std::uint32_t type = 0;           // ggml type number
  device::WeightFormat format{};
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

class GgufFile {
 public:
  // `path`: the file, or the first of a split set. Tensor data stays mapped as long as this object lives.
  static Result<std::shared_ptr<GgufFile>> open(const std::string& path);
  const std::string& path() const { return path_; }
  const GgufValue* find(std::string_view key) const;
  // Typed look-ups; the error names file, key, and the type wanted.
  Result<std::string> string(std::string_view key) const;
  Result<std::int64_t> integer(std::string_view key) const;
  Result<double> number(std::string_view key) const;
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  // Null unless the key is there and is an array.
  const GgufArray* array(std::string_view key) const;
  const GgufTensor* tensor(std::string_view name) const;
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }

 private:
  GgufFile() = default;
  Status add_part(std::shared_ptr<const MappedFile> file);

  std::string path_;
  std::vector<std::shared_ptr<const MappedFile>> parts_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace baton::model

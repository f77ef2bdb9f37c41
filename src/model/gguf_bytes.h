#pragma once
// Writes GGUF bytes by hand for tests, right or wrong on purpose: nothing here checks anything.

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace baton::model::testing {

class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    const auto* p = reinterpret_cast<const char*>(&value);
    text.append(p, sizeof value);
    return *this;
  }
  Bytes& string(std::string_view s) {
    put<std::uint64_t>(s.size());
    text.append(s);
    return *this;
  }
  std::string text;
};

struct GgufBytes {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  std::vector<std::string> keys;     // each a whole key-value pair
  std::vector<std::string> tensors;  // each a whole tensor info
  std::string data;

  GgufBytes& key(std::string_view name, std::uint32_t type, const std::string& value) {
    keys.push_back(Bytes().string(name).put(type).text + value);
    return *this;
  }
  GgufBytes& u32(std::string_view name, std::uint32_t value) { return key(name, 4, Bytes().put(value).text); }
  GgufBytes& f32(std::string_view name, float value) { return key(name, 6, Bytes().put(value).text); }
  GgufBytes& flag(std::string_view name, bool value) { return key(name, 7, Bytes().put<std::uint8_t>(value).text); }
  GgufBytes& str(std::string_view name, std::string_view value) { return key(name, 8, Bytes().string(value).text); }
  GgufBytes& strs(std::string_view name, const std::vector<std::string>& values) {
    Bytes b;
    b.put<std::uint32_t>(8).put<std::uint64_t>(values.size());
    for (const std::string& v : values) b.string(v);
    return key(name, 9, b.text);
  }
  GgufBytes& i32s(std::string_view name, const std::vector<std::int32_t>& values) {
    Bytes b;
    b.put<std::uint32_t>(5).put<std::uint64_t>(values.size());
    for (const std::int32_t v : values) b.put(v);
    return key(name, 9, b.text);
  }
  // `shape` as the file has it: innermost first.
  GgufBytes& info(std::string_view name, const std::vector<std::uint64_t>& shape, std::uint32_t type, std::uint64_t offset) {
    Bytes b;
    b.string(name).put<std::uint32_t>(static_cast<std::uint32_t>(shape.size()));
    for (const std::uint64_t n : shape) b.put(n);
    b.put(type).put(offset);
    tensors.push_back(b.text);
    return *this;
  }
  // A tensor with its data, placed behind those before it. `shape` outermost first.
  GgufBytes& tensor(std::string_view name, std::vector<std::int64_t> shape, std::uint32_t type, const std::string& bytes) {
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    std::vector<std::uint64_t> reversed(shape.rbegin(), shape.rend());
    info(name, reversed, type, data.size());
    data += bytes;
    return *this;
  }
  GgufBytes& f32s(std::string_view name, std::vector<std::int64_t> shape, const std::vector<float>& values) {
    return tensor(name, std::move(shape), 0, std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4));
  }

  std::string bytes() const {
    Bytes b;
    b.text = magic;
    b.put(version).put<std::uint64_t>(tensors.size()).put<std::uint64_t>(keys.size());
    for (const auto& k : keys) b.text += k;
    for (const auto& t : tensors) b.text += t;
    if (!data.empty()) b.text.resize((b.text.size() + alignment - 1) / alignment * alignment);
    return b.text + data;
  }
};

inline void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace baton::model::testing

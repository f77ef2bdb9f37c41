#pragma once
// Little-endian writer and bounds-checked reader for messages.cc.

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

namespace baton::transfer {

class Writer {
 public:
  template <class T>
  void integer(T value) {
    static_assert(std::is_integral_v<T>);
    auto u = static_cast<std::make_unsigned_t<T>>(value);
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      out_.push_back(static_cast<char>(u & 0xffu));
      if constexpr (sizeof(T) > 1) u = static_cast<decltype(u)>(u >> 8);
    }
  }
  void u8(std::uint8_t v) { integer(v); }
  void u32(std::uint32_t v) { integer(v); }
  void i32(std::int32_t v) { integer(v); }
  void u64(std::uint64_t v) { integer(v); }
  void i64(std::int64_t v) { integer(v); }
  void f32(float v) { integer(std::bit_cast<std::uint32_t>(v)); }
  void string(std::string_view s) {
    u32(static_cast<std::uint32_t>(s.size()));
    out_.append(s);
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

// After the first failure every read gives zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}
  template <class T>
  T integer() {
    if (in_.size() < sizeof(T)) {
      fail();
      return T{};
    }
    std::make_unsigned_t<T> u = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      u = static_cast<decltype(u)>(u | static_cast<decltype(u)>(static_cast<decltype(u)>(static_cast<unsigned char>(in_[i])) << (8 * i)));
    }
    in_.remove_prefix(sizeof(T));
    return static_cast<T>(u);
  }
  std::uint8_t u8() { return integer<std::uint8_t>(); }
  std::uint32_t u32() { return integer<std::uint32_t>(); }
  std::int32_t i32() { return integer<std::int32_t>(); }
  std::uint64_t u64() { return integer<std::uint64_t>(); }
  std::int64_t i64() { return integer<std::int64_t>(); }
  float f32() { return std::bit_cast<float>(u32()); }
  bool boolean() {
    const auto v = u8();
    if (v > 1) fail();
    return v == 1;
  }
  std::string string(std::size_t bytes_max) {
    const std::size_t n = u32();
    if (n > bytes_max || n > in_.size()) {
      fail();
      return {};
    }
    std::string s(in_.substr(0, n));
    in_.remove_prefix(n);
    return s;
  }
  // A count of elements of at least `element_bytes` each.
  std::size_t count(std::size_t max, std::size_t element_bytes) {
    const std::size_t n = u32();
    if (n > max || n * element_bytes > in_.size()) {
      fail();
      return 0;
    }
    return n;
  }
  void fail() {
    ok_ = false;
    in_ = {};
  }
  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && in_.empty(); }

 private:
  std::string_view in_;
  bool ok_ = true;
};

}  // namespace baton::transfer

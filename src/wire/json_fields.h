#pragma once
// Private to wire/. A struct's JSON form is one list of its fields, `fields(visitor, struct)`, which a Writer and a Reader both walk: what
// is written is what is read. The Reader checks presence, type and range of every field and keeps the first error, with the path of the
// field in it. Unknown fields are skipped, so that a newer peer of the same protocol version may say more.

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace baton::wire::json {

template <class T>
struct IsId : std::false_type {};
template <class Tag, class Rep>
struct IsId<Id<Tag, Rep>> : std::true_type {};
template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <class T>
struct IsPair : std::false_type {};
template <class A, class B>
struct IsPair<std::pair<A, B>> : std::true_type {};

// What a `fields` is for: a struct to be written, or to be read into.
template <class T, class S>
concept Is = std::same_as<std::remove_const_t<T>, S>;
template <class T>
concept Integer = std::integral<T> && !std::same_as<T, bool>;

// The names of an enum's values, in order of their numbers: specialise for each enum on the wire.
template <class T>
struct EnumNames;

// An integer field's least and greatest value; whether a number may be infinite or not a number.
struct Bounds {
  std::int64_t min = std::numeric_limits<std::int64_t>::min();
  std::uint64_t max = std::numeric_limits<std::uint64_t>::max();
  bool finite = true;
};
inline constexpr Bounds kFromZero{.min = 0};
inline constexpr Bounds kFromOne{.min = 1};
inline constexpr Bounds kPort{.min = 0, .max = 65535};
inline constexpr Bounds kLogprob{.finite = false};

class Writer {
 public:
  using Json = nlohmann::ordered_json;  // for the eye of whoever reads a trace

  template <class T>
  void operator()(const char* name, const T& value, Bounds = {}) {
    if constexpr (IsOptional<T>::value) {
      if (!value) return;
    }
    object_[name] = encode(value);
  }

  template <class T>
  static Json encode(const T& value) {
    if constexpr (std::same_as<T, Status>) {
      return Json{{"code", to_string(value.code())}, {"message", value.message()}};
    } else if constexpr (std::same_as<T, Duration>) {
      return value.count();
    } else if constexpr (IsId<T>::value) {
      return value.value;
    } else if constexpr (std::is_enum_v<T>) {
      return EnumNames<T>::kNames[static_cast<int>(value)];
    } else if constexpr (std::floating_point<T>) {
      if (std::isfinite(value)) return static_cast<double>(value);
      return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
    } else if constexpr (std::is_arithmetic_v<T> || std::same_as<T, std::string>) {
      return value;
    } else if constexpr (IsOptional<T>::value) {
      return value ? encode(*value) : Json(nullptr);
    } else if constexpr (IsPair<T>::value) {
      return Json::array({encode(value.first), encode(value.second)});
    } else if constexpr (IsVector<T>::value) {
      Json array = Json::array();
      for (const auto& element : value) array.push_back(encode(element));
      return array;
    } else {
      Writer writer;
      fields(writer, value);
      return std::move(writer.object_);
    }
  }

  Json& object() { return object_; }

  // Text that is not UTF-8 (a peer's message) is repaired, never thrown at the caller.
  static std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

 private:
  Json object_ = Json::object();
};

class Reader {
 public:
  using Json = nlohmann::json;  // logarithmic, however many keys a peer may send

  // Parses `text`, which must be one JSON object.
  static Result<Json> parse(std::string_view text) {
    Json json = Json::parse(text.begin(), text.end(), nullptr, false);
    if (json.is_discarded()) return Status(Code::kInvalidArgument, "not JSON: " + std::string(text.substr(0, 80)));
    if (!json.is_object()) return Status(Code::kInvalidArgument, "expected a JSON object");
    return json;
  }

  // Reads a whole struct.
  template <class T>
  static Result<T> read(const Json& json) {
    T value;
    Status status;
    Reader reader(json, nullptr, nullptr, status);
    fields(reader, value);
    if (!status.ok()) return status;
    return value;
  }

  template <class T>
  void operator()(const char* name, T& value, Bounds bounds = {}) {
    if (!status_.ok()) return;
    Reader child(json_, this, name, status_);
    const auto found = json_.find(name);
    if (found == json_.end()) {
      if constexpr (IsOptional<T>::value) {
        value.reset();
      } else {
        child.fail("missing");
      }
      return;
    }
    Reader(*found, this, name, status_).decode(value, bounds);
  }

 private:
  Reader(const Json& json, const Reader* parent, const char* name, Status& status, std::size_t index = 0)
      : json_(json), parent_(parent), name_(name), index_(index), status_(status) {}

  template <class T>
  void decode(T& value, Bounds bounds) {
    if constexpr (std::same_as<T, Status>) {
      decode_status(value);
    } else if constexpr (std::same_as<T, Duration>) {
      Duration::rep count = 0;
      decode(count, bounds);
      value = Duration(count);
    } else if constexpr (IsId<T>::value) {
      decode(value.value, bounds);
    } else if constexpr (std::is_enum_v<T>) {
      decode_enum(value);
    } else if constexpr (std::same_as<T, bool>) {
      if (!json_.is_boolean()) return fail("expected true or false");
      value = json_.get<bool>();
    } else if constexpr (Integer<T>) {
      decode_integer(value, bounds);
    } else if constexpr (std::floating_point<T>) {
      decode_float(value, bounds);
    } else if constexpr (std::same_as<T, std::string>) {
      if (!json_.is_string()) return fail("expected a string");
      value = json_.get_ref<const std::string&>();
    } else if constexpr (IsOptional<T>::value) {
      if (json_.is_null()) return value.reset();
      decode(value.emplace(), bounds);
    } else if constexpr (IsPair<T>::value) {
      if (!json_.is_array() || json_.size() != 2) return fail("expected an array of two");
      Reader(json_[0], this, nullptr, status_, 0).decode(value.first, {});
      if (status_.ok()) Reader(json_[1], this, nullptr, status_, 1).decode(value.second, {});
    } else if constexpr (IsVector<T>::value) {
      if (!json_.is_array()) return fail("expected an array");
      value.clear();
      value.reserve(json_.size());
      for (std::size_t i = 0; i < json_.size() && status_.ok(); ++i)
        Reader(json_[i], this, nullptr, status_, i).decode(value.emplace_back(), bounds);
    } else {
      if (!json_.is_object()) return fail("expected an object");
      fields(*this, value);
    }
  }

  template <class T>
  void decode_integer(T& value, Bounds bounds) {
    if (!json_.is_number_integer()) return fail("expected an integer");
    if (json_.is_number_unsigned()) {
      const auto number = json_.get<std::uint64_t>();
      if (!std::in_range<T>(number) || number > bounds.max || std::cmp_less(number, bounds.min)) return fail("out of range");
      value = static_cast<T>(number);
    } else {
      const auto number = json_.get<std::int64_t>();  // negative
      if (!std::in_range<T>(number) || number < bounds.min) return fail("out of range");
      value = static_cast<T>(number);
    }
  }

  template <class T>
  void decode_float(T& value, Bounds bounds) {
    if (json_.is_number()) {
      const double number = json_.get<double>();
      if (std::abs(number) > static_cast<double>(std::numeric_limits<T>::max())) return fail("out of range");
      value = static_cast<T>(number);
      return;
    }
    if (bounds.finite) return fail("expected a finite number");
    if (json_ == "-inf") return void(value = -std::numeric_limits<T>::infinity());
    if (json_ == "inf") return void(value = std::numeric_limits<T>::infinity());
    if (json_ == "nan") return void(value = std::numeric_limits<T>::quiet_NaN());
    fail("expected a number");
  }

  template <class T>
  void decode_enum(T& value) {
    const auto& names = EnumNames<T>::kNames;
    if (json_.is_string()) {
      const auto& text = json_.get_ref<const std::string&>();
      for (std::size_t i = 0; i < std::size(names); ++i) {
        if (text == names[i]) return void(value = static_cast<T>(i));
      }
    }
    std::string expected = "expected one of";
    for (const char* name : names) expected += std::string(" ") + name;
    fail(expected);
  }

  void decode_status(Status& value) {
    if (!json_.is_object()) return fail("expected an object");
    std::string code, message;
    (*this)("code", code);
    (*this)("message", message);
    if (code == to_string(Code::kOk)) return fail("a failure cannot be ok");
    if (status_.ok()) value = Status(code_from_string(code), std::move(message));
  }

  void fail(const std::string& what) {
    if (status_.ok()) status_ = Status(Code::kInvalidArgument, path() + ": " + what);
  }

  std::string path() const {
    if (parent_ == nullptr) return {};
    std::string prefix = parent_->path();
    if (name_ == nullptr) return prefix + "[" + std::to_string(index_) + "]";
    return prefix.empty() ? name_ : prefix + "." + name_;
  }

  const Json& json_;
  const Reader* parent_;  // null: the message itself
  const char* name_;      // null: element `index_` of an array
  std::size_t index_;
  Status& status_;
};

}  // namespace baton::wire::json

#pragma once
// Typed look-ups in a JSON object from a file; errors name the file, the field, and what is wanted. Private to model/.

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/status.h"

namespace baton::model {

class JsonObject {
 public:
  static Result<JsonObject> parse(const std::string& file, const std::string& text) {
    nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (value.is_discarded()) return {Code::kInvalidArgument, file + ": not valid JSON"};
    if (!value.is_object()) return {Code::kInvalidArgument, file + ": a JSON object is wanted"};
    return JsonObject(file, "", std::move(value));
  }

  // Whether the field is there and not null.
  bool has(const std::string& field) const { return get(field) != nullptr; }
  const nlohmann::json* get(const std::string& field) const {
    const auto it = value_.find(field);
    return it == value_.end() || it->is_null() ? nullptr : &*it;
  }

  // With `otherwise`, a missing (or null) field is that; without, it is an error.
  Result<int> integer(const std::string& field, std::optional<int> otherwise = std::nullopt) const {
    const nlohmann::json* v = get(field);
    if (v == nullptr && otherwise) return *otherwise;
    if (v == nullptr) return missing(field);
    // Large unsigned values are a type of their own in nlohmann's JSON, and do not survive a cast.
    if (!v->is_number_integer() || (v->is_number_unsigned() && v->get<std::uint64_t>() > std::numeric_limits<int>::max()) ||
        v->get<std::int64_t>() < 0 || v->get<std::int64_t>() > std::numeric_limits<int>::max()) {
      return wrong(field, "an integer from 0 to 2147483647");
    }
    return v->get<int>();
  }
  Result<double> number(const std::string& field, std::optional<double> otherwise = std::nullopt) const {
    const nlohmann::json* v = get(field);
    if (v == nullptr && otherwise) return *otherwise;
    if (v == nullptr) return missing(field);
    if (!v->is_number()) return wrong(field, "a number");
    return v->get<double>();
  }
  Result<bool> boolean(const std::string& field, bool otherwise) const {
    const nlohmann::json* v = get(field);
    if (v == nullptr) return otherwise;
    if (!v->is_boolean()) return wrong(field, "true or false");
    return v->get<bool>();
  }
  Result<std::string> string(const std::string& field, std::optional<std::string> otherwise = std::nullopt) const {
    const nlohmann::json* v = get(field);
    if (v == nullptr && otherwise) return *otherwise;
    if (v == nullptr) return missing(field);
    if (!v->is_string()) return wrong(field, "a string");
    return v->get<std::string>();
  }
  Result<JsonObject> object(const std::string& field) const {
    const nlohmann::json* v = get(field);
    if (v == nullptr) return missing(field);
    if (!v->is_object()) return wrong(field, "an object");
    return JsonObject(file_, prefix_ + field + ".", *v);
  }

  Status missing(const std::string& field) const {
    return {Code::kInvalidArgument, file_ + ": field \"" + prefix_ + field + "\" is missing"};
  }
  Status wrong(const std::string& field, const std::string& wanted) const {
    std::string found = value_.contains(field) ? value_[field].dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) : "absent";
    if (found.size() > 80) found = found.substr(0, 77) + "...";
    return {Code::kInvalidArgument, file_ + ": field \"" + prefix_ + field + "\" is " + found + "; supported: " + wanted};
  }

 private:
  JsonObject(std::string file, std::string prefix, nlohmann::json value)
      : file_(std::move(file)), prefix_(std::move(prefix)), value_(std::move(value)) {}
  std::string file_, prefix_;
  nlohmann::json value_;
};

}  // namespace baton::model

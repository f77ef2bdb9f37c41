#pragma once
// Members of JSON that others wrote: absent, null and of another type are the same.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace baton::app {

template <class Json>
std::string text_field(const Json& object, const char* name) {
  if (!object.is_object()) return "";
  const auto field = object.find(name);
  return field != object.end() && field->is_string() ? field->template get<std::string>() : "";
}

template <class Json>
std::optional<std::int64_t> integer_field(const Json& object, const char* name) {
  if (!object.is_object()) return std::nullopt;
  const auto field = object.find(name);
  if (field == object.end() || !field->is_number_integer()) return std::nullopt;
  return field->template get<std::int64_t>();
}

}  // namespace baton::app

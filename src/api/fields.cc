#include "api/fields.h"

#include <spdlog/fmt/fmt.h>

namespace baton::api {

const Json* Fields::find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void Fields::fail(const char* name, std::string message) {
  if (!error_) error_ = ApiError{Status(Code::kInvalidArgument, std::move(message)), name};
}

void Fields::refuse(const char* name, const std::string& why) {
  if (find(name)) fail(name, fmt::format("`{}` is not supported: {}", name, why));
}

bool Fields::boolean(const char* name, bool fallback) {
  const Json* value = find(name);
  if (!value) return fallback;
  if (!value->is_boolean()) {
    fail(name, fmt::format("`{}` must be true or false, got {}", name, value->type_name()));
    return fallback;
  }
  return value->get<bool>();
}

std::optional<std::int64_t> Fields::integer(const char* name, std::int64_t min, std::int64_t max) {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  const bool whole_float =
      value->is_number_float() && value->get<double>() == static_cast<double>(static_cast<std::int64_t>(value->get<double>()));
  if (!value->is_number_integer() && !whole_float) {
    fail(name, fmt::format("`{}` must be an integer, got {}", name, value->type_name()));
    return std::nullopt;
  }
  if (value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) {
    fail(name, fmt::format("`{}` must be at most {}", name, max));
    return std::nullopt;
  }
  const std::int64_t n = whole_float ? static_cast<std::int64_t>(value->get<double>()) : value->get<std::int64_t>();
  if (n < min || n > max) {
    fail(name, n < min ? fmt::format("`{}` must be at least {}, got {}", name, min, n)
                       : fmt::format("`{}` must be at most {}, got {}", name, max, n));
    return std::nullopt;
  }
  return n;
}

std::optional<double> Fields::number(const char* name, double min, double max) {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_number()) {
    fail(name, fmt::format("`{}` must be a number, got {}", name, value->type_name()));
    return std::nullopt;
  }
  const double x = value->get<double>();
  if (!(x >= min && x <= max)) {
    fail(name, fmt::format("`{}` must be between {} and {}, got {}", name, min, max, x));
    return std::nullopt;
  }
  return x;
}

std::optional<std::string> Fields::string(const char* name) {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_string()) {
    fail(name, fmt::format("`{}` must be a string, got {}", name, value->type_name()));
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::vector<std::string> Fields::strings(const char* name, std::size_t most) {
  std::vector<std::string> out;
  const Json* value = find(name);
  if (!value) return out;
  if (value->is_string()) {
    out.push_back(value->get<std::string>());
  } else if (value->is_array()) {
    if (value->size() > most) {
      fail(name, fmt::format("`{}` may have at most {} entries, got {}", name, most, value->size()));
      return out;
    }
    for (const Json& item : *value) {
      if (!item.is_string()) {
        fail(name, fmt::format("`{}` must be a string or a list of strings, found {}", name, item.type_name()));
        return out;
      }
      out.push_back(item.get<std::string>());
    }
  } else {
    fail(name, fmt::format("`{}` must be a string or a list of strings, got {}", name, value->type_name()));
  }
  for (const std::string& s : out)
    if (s.empty()) fail(name, fmt::format("`{}` must not contain an empty string", name));
  return out;
}

std::vector<std::int32_t> Fields::ids(const char* name, std::size_t most) {
  std::vector<std::int32_t> out;
  const Json* value = find(name);
  if (!value) return out;
  if (!value->is_array()) {
    fail(name, fmt::format("`{}` must be a list of token ids, got {}", name, value->type_name()));
    return out;
  }
  if (value->size() > most) {
    fail(name, fmt::format("`{}` may have at most {} entries, got {}", name, most, value->size()));
    return out;
  }
  for (const Json& item : *value) {
    if (!item.is_number_integer() || item.get<std::int64_t>() < 0 || item.get<std::int64_t>() > INT32_MAX) {
      fail(name, fmt::format("`{}` must be a list of token ids, found {}", name, item.dump()));
      return out;
    }
    out.push_back(static_cast<std::int32_t>(item.get<std::int64_t>()));
  }
  return out;
}

}  // namespace baton::api

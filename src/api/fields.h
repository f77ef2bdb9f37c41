#pragma once
// Reads the fields of a request's JSON object one by one and keeps the first thing that is wrong. null counts as absent; unknown fields are
// ignored.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace baton::api {

using Json = nlohmann::ordered_json;

// What a 4xx answer says.
struct ApiError {
  Status status;
  std::string param;  // the field at fault, "" if none
};

class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  // The field's value, or nullptr if absent or null.
  const Json* find(const char* name) const;
  bool boolean(const char* name, bool fallback);
  std::optional<std::int64_t> integer(const char* name, std::int64_t min, std::int64_t max);
  std::optional<double> number(const char* name, double min, double max);
  std::optional<std::string> string(const char* name);
  // A string or a list of strings.
  std::vector<std::string> strings(const char* name, std::size_t most);
  std::vector<std::int32_t> ids(const char* name, std::size_t most);
  // Refuses a field that this server does not implement, rather than answering as if it were not there.
  void refuse(const char* name, const std::string& why);

  void fail(const char* name, std::string message);
  bool ok() const { return !error_; }
  const ApiError& error() const { return *error_; }

 private:
  const Json& object_;
  std::optional<ApiError> error_;
};

}  // namespace baton::api

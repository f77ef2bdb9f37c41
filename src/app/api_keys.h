#pragma once
// Who may use the server, and how much of it. Secrets stay here and in api: everything else knows keys by their names.

#include <string>
#include <string_view>
#include <vector>

#include "api/api.h"
#include "base/status.h"
#include "gateway/admission.h"

namespace baton::app {

struct ApiKeys {
  std::vector<api::ApiKey> keys;         // empty: nobody is asked for one
  std::vector<gateway::Tenant> tenants;  // ApiKey::tenant is an index of it; the first is everybody without a key
};

// The keys in `given` (names key-1, key-2, ...; weight 1, no limits), then those of `file` unless it is "". Errors name file, line and
// reason, and never show a key.
Result<ApiKeys> load_api_keys(const std::vector<std::string>& given, const std::string& file);

// Adds what a file says: JSON Lines, an object a line; empty lines and lines that begin with # are skipped.
//   {"key": "...", "name": "...", "weight": 1, "max_requests": 8, "max_tokens_per_minute": 60000}
// The last three may be left out: weight 1, no limits. Other fields are refused.
Status add_key_file(std::string_view path, std::string_view text, ApiKeys& keys);

// Whether users other than its owner may read the file.
bool readable_by_others(const std::string& path);

}  // namespace baton::app

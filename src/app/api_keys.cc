#include "app/api_keys.h"

#include <spdlog/fmt/fmt.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "app/paths.h"

namespace baton::app {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kKeysMax = 1024;  // each has its metrics
constexpr std::size_t kKeyBytesMax = 256, kNameBytesMax = 64;
constexpr std::int64_t kWeightMax = 1000, kRequestsMax = 1 << 20, kTokensMax = 1'000'000'000;

Status wrong(std::string why) { return Status(Code::kInvalidArgument, std::move(why)); }

Result<std::string> text_field(const Json& line, const char* name, std::size_t bytes_max, bool (*usable)(char), const char* what) {
  const auto found = line.find(name);
  if (found == line.end()) return wrong(fmt::format("`{}` is missing", name));
  if (!found->is_string()) return wrong(fmt::format("`{}` must be a string", name));
  const auto& text = found->get_ref<const std::string&>();
  if (text.empty() || text.size() > bytes_max || !std::ranges::all_of(text, usable))
    return wrong(fmt::format("`{}` must be 1 to {} {}", name, bytes_max, what));
  return text;
}

Result<std::int64_t> number_field(const Json& line, const char* name, std::int64_t fallback, std::int64_t most) {
  const auto found = line.find(name);
  if (found == line.end()) return fallback;
  const bool sound =
      found->is_number_unsigned() && found->get<std::uint64_t>() >= 1 && found->get<std::uint64_t>() <= static_cast<std::uint64_t>(most);
  if (!sound) return wrong(fmt::format("`{}` must be a whole number from 1 to {}", name, most));
  return found->get<std::int64_t>();
}

bool in_key(char c) { return c > ' ' && c <= '~'; }
bool in_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.'; }

Status add(ApiKeys& keys, std::string key, gateway::Tenant tenant) {
  if (keys.keys.size() >= kKeysMax) return wrong(fmt::format("there are more than {} keys", kKeysMax));
  if (std::ranges::any_of(keys.keys, [&](const api::ApiKey& k) { return k.secret == key; })) return wrong("its key was given before");
  if (std::ranges::any_of(keys.tenants, [&](const gateway::Tenant& t) { return t.name == tenant.name; }))
    return wrong(fmt::format("the name {} was given before", tenant.name));
  keys.keys.push_back({std::move(key), static_cast<std::int32_t>(keys.tenants.size())});
  keys.tenants.push_back(std::move(tenant));
  return {};
}

Status add_line(std::string_view text, ApiKeys& keys) {
  Json line;
  try {
    line = Json::parse(text);
  } catch (const Json::parse_error& e) {  // its message would show what it read
    return wrong(fmt::format("not valid JSON at column {}", e.byte));
  } catch (const Json::exception&) {
    return wrong("not valid JSON");
  }
  if (!line.is_object()) return wrong("expected a JSON object with `key` and `name`");
  static constexpr std::string_view kFields[] = {"key", "name", "weight", "max_requests", "max_tokens_per_minute"};
  for (const auto& [name, value] : line.items())
    if (std::ranges::find(kFields, name) == std::end(kFields))
      return wrong(fmt::format("an unknown field; known are {}", fmt::join(kFields, ", ")));
  gateway::Tenant tenant;
  BATON_ASSIGN_OR_RETURN(std::string key, text_field(line, "key", kKeyBytesMax, in_key, "printable ASCII characters without spaces"));
  BATON_ASSIGN_OR_RETURN(tenant.name, text_field(line, "name", kNameBytesMax, in_name, "of A-Z a-z 0-9 - _ ."));
  BATON_ASSIGN_OR_RETURN(const std::int64_t weight, number_field(line, "weight", 1, kWeightMax));
  BATON_ASSIGN_OR_RETURN(const std::int64_t requests, number_field(line, "max_requests", 0, kRequestsMax));
  BATON_ASSIGN_OR_RETURN(tenant.tokens_per_minute, number_field(line, "max_tokens_per_minute", 0, kTokensMax));
  tenant.weight = static_cast<int>(weight);
  tenant.requests_max = static_cast<int>(requests);
  return add(keys, std::move(key), std::move(tenant));
}

}  // namespace

Status add_key_file(std::string_view path, std::string_view text, ApiKeys& keys) {
  for (int number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    while (!line.empty() && (line.back() == ' ' || line.back() == '\t' || line.back() == '\r')) line.remove_suffix(1);
    while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
    if (line.empty() || line.front() == '#') continue;
    if (const Status status = add_line(line, keys); !status.ok()) return status.with_context(fmt::format("{}:{}", path, number));
  }
  return {};
}

Result<ApiKeys> load_api_keys(const std::vector<std::string>& given, const std::string& file) {
  ApiKeys keys;
  keys.tenants.push_back({.name = "none"});
  for (const std::string& key : given) {
    if (std::ranges::any_of(keys.keys, [&](const api::ApiKey& k) { return k.secret == key; })) continue;  // by flag and environment
    BATON_RETURN_IF_ERROR(add(keys, key, {.name = fmt::format("key-{}", keys.keys.size() + 1)}));
  }
  if (file.empty()) return keys;
  BATON_ASSIGN_OR_RETURN(const std::string text, read_text_file(file));
  const std::size_t before = keys.keys.size();
  BATON_RETURN_IF_ERROR(add_key_file(file, text, keys));
  if (keys.keys.size() == before) return wrong(fmt::format("{}: there is no key in it", file));  // else everybody would be let in
  return keys;
}

bool readable_by_others(const std::string& path) {
  struct stat info{};
  return stat(path.c_str(), &info) == 0 && (info.st_mode & (S_IRGRP | S_IROTH)) != 0;
}

}  // namespace baton::app

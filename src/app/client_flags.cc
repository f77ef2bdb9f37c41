#include "app/client_flags.h"

#include <spdlog/fmt/fmt.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

namespace baton::app {

void ClientFlags::add_to(CLI::App& app) {
  const char* group = "Server";
  app.add_option("--url,--base-url", base_url, "the server, e.g. http://127.0.0.1:8000 (instead of --host and --port)")->group(group);
  app.add_option("--host", host, "its address")->capture_default_str()->group(group);
  app.add_option("--port", port, "its port")->check(CLI::Range(1, 65535))->capture_default_str()->group(group);
  app.add_option("--api-key", api_key, "key to send; also from OPENAI_API_KEY")->group(group);
  app.add_option("--model", model, "model to name in requests (default: the first that the server lists)")->group(group);
}

Result<LocalHttp> ClientFlags::open() const {
  BATON_ASSIGN_OR_RETURN(LocalHttp http, base_url.empty() ? LocalHttp::open(host, port) : LocalHttp::open(base_url));
  http.set_api_key(key());
  return http;
}

std::string ClientFlags::key() const {
  const char* key = std::getenv("OPENAI_API_KEY");
  return !api_key.empty() || !key ? api_key : key;
}

std::string ClientFlags::url() const { return base_url.empty() ? fmt::format("http://{}:{}", host, port) : base_url; }

std::string server_message(std::string_view body) {
  const auto json = nlohmann::json::parse(body, nullptr, false);
  const auto error = json.is_object() ? json.find("error") : json.end();
  if (json.is_object() && error != json.end() && error->is_object()) {
    const auto message = error->find("message");
    if (message != error->end() && message->is_string()) return message->get<std::string>();
  }
  return std::string(body.substr(0, 500));
}

Status check_answer(const HttpAnswer& answer, const std::string& what) {
  if (answer.status >= 200 && answer.status < 300) return {};
  const Code code = answer.status == 404   ? Code::kNotFound
                    : answer.status == 401 ? Code::kUnauthenticated
                    : answer.status == 503 ? Code::kUnavailable
                                           : Code::kInternal;
  return Status(code, fmt::format("{}: HTTP {}: {}", what, answer.status, server_message(answer.body)));
}

std::optional<std::string> delta_text(const nlohmann::ordered_json& chunk) {
  const auto choices = chunk.find("choices");
  if (choices == chunk.end() || !choices->is_array() || choices->empty()) return std::nullopt;
  const nlohmann::ordered_json& choice = choices->front();
  if (!choice.is_object() || !choice.contains("delta") || !choice["delta"].is_object()) return "";
  const auto text = choice["delta"].find("content");
  return text != choice["delta"].end() && text->is_string() ? text->get<std::string>() : "";
}

}  // namespace baton::app

#pragma once
// How the client commands (check, status, chat, bench serve) name the server that they talk to.

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "app/local_http.h"

namespace baton::app {

struct ClientFlags {
  std::string base_url;
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string api_key;
  std::string model;  // "": the server's first

  void add_to(CLI::App& app);
  Result<LocalHttp> open() const;
  std::string url() const;
  std::string key() const;  // --api-key, else OPENAI_API_KEY, else ""
};

// What the body of an error, or an error event of a stream, says: its `error.message`, else the beginning of the body itself.
std::string server_message(std::string_view body);

// A status other than 2xx as an error that carries the server's own message.
Status check_answer(const HttpAnswer& answer, const std::string& what);

// The text of the first choice of a streamed chat chunk, "" where it has none; nullopt for a chunk without choices (usage).
std::optional<std::string> delta_text(const nlohmann::ordered_json& chunk);

}  // namespace baton::app

#include "api/errors.h"

#include <algorithm>

#include "api/json_text.h"

namespace baton::api {

std::string error_body(const ApiError& error) {
  std::string body = "{\"error\":{\"message\":";
  append_json_string(body, error.status.message());
  body += ",\"type\":";
  append_json_string(body, error_type(error.status.code()));
  body += ",\"param\":";
  if (error.param.empty()) {
    body += "null";
  } else {
    append_json_string(body, error.param);
  }
  body += ",\"code\":" + std::to_string(http_status(error.status.code())) + "}}";
  return body;
}

void respond_error(net::HttpResponder& responder, const ApiError& error, net::Headers headers) {
  const int status = http_status(error.status.code());
  headers.add("Content-Type", "application/json");
  if (status == 429 || status == 503) headers.add("Retry-After", std::to_string(std::max(1, error.status.retry_after_s())));
  responder.respond(status, std::move(headers), error_body(error));
}

void respond_json(net::HttpResponder& responder, int status, std::string body) {
  net::Headers headers;
  headers.add("Content-Type", "application/json");
  responder.respond(status, std::move(headers), std::move(body));
}

}  // namespace baton::api

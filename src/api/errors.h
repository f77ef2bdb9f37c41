#pragma once
// OpenAI's error body and how a Status becomes an HTTP answer.

#include <string>

#include "api/fields.h"
#include "net/http.h"

namespace baton::api {

// {"error":{"message","type","param","code"}}
std::string error_body(const ApiError& error);
// Status from the table in base/status.h; 429 and 503 carry Retry-After.
void respond_error(net::HttpResponder& responder, const ApiError& error, net::Headers headers = {});
void respond_json(net::HttpResponder& responder, int status, std::string body);

}  // namespace baton::api

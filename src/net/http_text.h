#pragma once
// Small pieces of HTTP/1.1 text. For net/*.cc only.

#include <optional>
#include <string>
#include <string_view>

#include "net/http.h"

namespace baton::net {

std::string_view reason_phrase(int status);
bool equal_ignoring_case(std::string_view a, std::string_view b);
// CR, LF and NUL become spaces, so that no value can start a new field.
void append_field(std::string& out, std::string_view name, std::string_view value);
// False if a '%' is not followed by two hex digits.
bool percent_decode(std::string_view text, std::string& out);
// "Sun, 06 Nov 1994 08:49:37 GMT"
std::string http_date(std::int64_t unix_seconds);

}  // namespace baton::net

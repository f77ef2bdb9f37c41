#pragma once
// JSON by appending to a string: a streamed token must not cost a document tree.

#include <cstdint>
#include <string>
#include <string_view>

namespace baton::api {

// `text` as a JSON string with its quotes. Invalid UTF-8 becomes U+FFFD.
void append_json_string(std::string& out, std::string_view text);
// The shortest decimal that reads back as the same float; null for what JSON cannot say (inf, nan).
void append_json_number(std::string& out, float value);
// `text` with each invalid UTF-8 sequence replaced by U+FFFD.
std::string valid_utf8(std::string_view text);
// Length of the valid UTF-8 character that `text` begins with, 0 if it begins with none.
std::size_t utf8_character(std::string_view text);

}  // namespace baton::api

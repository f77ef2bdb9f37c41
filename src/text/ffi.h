#pragma once
// textkit's C values as C++ ones. Private to text/.

#include <string>
#include <string_view>

#include "base/status.h"
#include "textkit/textkit.h"

namespace baton::text {

inline const std::uint8_t* bytes_of(std::string_view s) { return reinterpret_cast<const std::uint8_t*>(s.data()); }

// Takes ownership.
inline std::string take(tk_bytes bytes) {
  std::string s(reinterpret_cast<const char*>(bytes.data), bytes.len);
  tk_bytes_free(bytes);
  return s;
}

inline Status to_status(int code, tk_bytes error) {
  return Status(code == TK_INVALID ? Code::kInvalidArgument : Code::kInternal, take(error));
}

}  // namespace baton::text
